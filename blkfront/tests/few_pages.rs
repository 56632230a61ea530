//! A disk of a domain that can grant fewer pages than the ring has slots for.

use hypervisor::local::Options;
use tempfile::NamedTempFile;
use testkit::Machine;
use testkit::block::{Backend, GUEST, XVDA, open, options};
use testkit::random::bytes;

const MIB: usize = 1 << 20;

#[test]
fn blocking_calls_that_find_no_page_wait_for_one_in_use() {
    let file = NamedTempFile::new().unwrap();
    file.as_file().set_len(MIB as u64).unwrap();
    let machine = Machine::new();
    let _back = Backend::start(&machine);
    machine.attach_disk(GUEST, XVDA, file.path().to_str().unwrap());
    // The calls below need 24 requests of 11 pages each.
    let guest = machine.sandbox.join_with(GUEST, Options { arena_pages: 64 }).unwrap();
    let mut disk = open(&guest, options());
    let written = bytes(1, MIB);
    disk.write_at(0, &written).unwrap();
    let mut read = vec![0; MIB];
    disk.read_at(0, &mut read).unwrap();
    assert!(read == written);
    disk.close().unwrap();
}
