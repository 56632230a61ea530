//! Requests whose segments lie in pages of their own: every data path, both layouts, and what a successor does with them.

use blkback::{DataPath, Tuning, VbdDriver};
use blkfront::{Disk, Operation, Options, Request};
use grant_table::{Access, GrantTable};
use ring_abi::DomId;
use ring_abi::blkif::{OP_READ, OP_WRITE, Status, X86_32, X86_64, key};
use ring_abi::ring::Protocol;
use std::path::Path;
use testkit::block::{Backend, GUEST, RawFrontend, XVDA, open, options, wait_for};
use testkit::random::bytes;
use testkit::{FrontendDevice, Machine};
use xenbus::stats::Snapshot;

const MIB: usize = 1 << 20;

fn image(bytes: &[u8]) -> tempfile::TempPath {
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), bytes).unwrap();
    file.into_temp_path()
}

fn start(machine: &Machine, data_path: DataPath, segments: u16) -> Backend {
    let dom0 = machine.domain(DomId::DOM0);
    let mut driver = VbdDriver::new(dom0.clone(), dom0.clone());
    driver.set_tuning(Tuning { data_path, ..Tuning::default() });
    driver.set_max_indirect_segments(segments);
    Backend::start_with(driver, &dom0)
}

fn attach(machine: &Machine, image: &Path) {
    machine.attach_disk(GUEST, XVDA, image.to_str().unwrap());
}

fn requests(back: &Backend, operation: &str) -> u64 {
    let stats: Snapshot = back.registry.get((GUEST, XVDA)).unwrap().stats.unwrap().snapshot();
    stats.operation(operation).unwrap().requests
}

fn request(disk: &Disk, operation: Operation, token: u64, sector: u64, bytes: usize) -> Request {
    let buffer = Some(disk.buffer(bytes).unwrap());
    Request { token, operation, sector, bytes, buffer }
}

#[test]
fn large_requests_reach_the_image_by_every_data_path() {
    for data_path in [DataPath::Map, DataPath::Persistent, DataPath::Copy] {
        let mut content = bytes(1, 8 * MIB);
        let image = image(&content);
        let machine = Machine::new();
        let back = start(&machine, data_path, 256);
        attach(&machine, &image);
        let mut disk = open(&machine.domain(GUEST), options());
        assert_eq!(disk.max_request_bytes(), MIB);
        let mut read = vec![0; content.len()];
        disk.read_at(0, &mut read).unwrap();
        assert!(read == content, "{data_path:?}");
        assert_eq!(requests(&back, "read"), 8, "a MiB each");
        for (seed, offset, len) in [(2, 512, 3 * MIB), (3, 4096, 45 << 10), (4, 5 * MIB, MIB + 512)] {
            let written = bytes(seed, len);
            disk.write_at(offset as u64, &written).unwrap();
            content[offset..offset + len].copy_from_slice(&written);
        }
        disk.flush().unwrap();
        assert!(std::fs::read(&image).unwrap() == content, "{data_path:?}");
        disk.close().unwrap();
    }
}

/// More than the bounce buffers that a ring may have at once hold: some wait, and all are carried out.
#[test]
fn large_requests_beyond_the_memory_for_copies_wait_for_each_other() {
    let content = bytes(1, 4 * MIB);
    let image = image(&content);
    let machine = Machine::new();
    let _back = start(&machine, DataPath::Copy, 256);
    attach(&machine, &image);
    let mut disk = open(&machine.domain(GUEST), options());
    // Among them small ones, whose pages are not there.
    for token in 0..32 {
        let bytes = if token % 4 == 3 { 4096 } else { MIB };
        let read = request(&disk, Operation::Read, token, token % 3 * 2048, bytes);
        disk.submit(read).unwrap();
    }
    for completion in wait_for(&mut disk, 32) {
        completion.check().unwrap();
        let Request { sector, bytes, buffer, .. } = completion.request;
        let mut read = vec![0; bytes];
        buffer.unwrap().copy_to(&mut read);
        assert!(read == content[sector as usize * 512..][..bytes]);
    }
    disk.close().unwrap();
}

#[test]
fn requests_are_as_large_as_both_ends_support() {
    let content = bytes(1, MIB);
    let image = image(&content);
    for (offered, expected) in [(0, 44 << 10), (11, 44 << 10), (32, 128 << 10), (4096, MIB)] {
        let machine = Machine::new();
        let back = start(&machine, DataPath::Map, offered);
        attach(&machine, &image);
        let mut disk = open(&machine.domain(GUEST), options());
        assert_eq!(disk.max_request_bytes(), expected);
        assert!(disk.buffer(expected).is_ok() && disk.buffer(expected + 1).is_err());
        let mut read = vec![0; MIB];
        disk.read_at(0, &mut read).unwrap();
        assert!(read == content);
        assert_eq!(requests(&back, "read"), MIB.div_ceil(expected) as u64);
        disk.close().unwrap();
    }
}

#[test]
fn request_larger_than_a_new_backend_supports_is_given_up_as_not_supported() {
    let content = bytes(1, 2 * MIB);
    let image = image(&content);
    let machine = Machine::new();
    let back = start(&machine, DataPath::Map, 256);
    attach(&machine, &image);
    let mut disk = open(&machine.domain(GUEST), Options { ring_page_order: 1, ..options() });
    back.stop();
    for (token, bytes) in [(1, MIB), (2, 4096), (3, 64 << 10), (4, 128 << 10)] {
        let read = request(&disk, Operation::Read, token, 8 * token, bytes);
        disk.submit(read).unwrap();
    }
    disk.commit().unwrap();
    let _back = start(&machine, DataPath::Map, 16);
    let mut done: Vec<_> = wait_for(&mut disk, 4)
        .iter()
        .map(|completion| (completion.request.token, completion.status))
        .collect();
    done.sort();
    assert_eq!(
        done,
        [(1, Status::EOPNOTSUPP), (2, Status::OKAY), (3, Status::OKAY), (4, Status::EOPNOTSUPP)]
    );
    assert_eq!(disk.max_request_bytes(), 64 << 10);
    // A larger buffer serves for what is supported.
    let mut small = request(&disk, Operation::Read, 5, 0, 64 << 10);
    small.bytes = 4096;
    disk.submit(small).unwrap();
    wait_for(&mut disk, 1)[0].check().unwrap();
    let mut read = vec![0; content.len()];
    disk.read_at(0, &mut read).unwrap();
    assert!(read == content);
    disk.close().unwrap();
}

/// Eight pages of segments, 16 MiB, in either layout.
fn largest_request_is_carried_out<P>(protocol: &str)
where
    P: Protocol<Request = ring_abi::blkif::Request, Response = ring_abi::blkif::Response>,
{
    let machine = Machine::new();
    let _back = start(&machine, DataPath::Map, 4096);
    let device = machine.attach_disk(GUEST, XVDA, "ram:16777216");
    let device = FrontendDevice::new(machine.domain(GUEST), device);
    let mut raw: RawFrontend<P> = RawFrontend::connect(device, protocol, false);
    let page = raw.data.refs()[3];
    raw.data.slice(3 * 4096, 4096).unwrap().copy_from(&[7; 4096]);
    let (write, _pages) = raw.indirect(OP_WRITE, 1, 0, &vec![page; 4096]);
    raw.send(&[write]);
    let response = raw.receive(1)[0];
    assert_eq!((response.status, response.operation), (Status::OKAY, OP_WRITE));
    let (read, _more) = raw.indirect(OP_READ, 2, 32768 - 8 * 20, &[raw.data.refs()[0]; 20]);
    raw.send(&[read]);
    assert_eq!(raw.receive(1)[0].status, Status::OKAY);
    let mut found = [0; 4096];
    raw.data.slice(0, 4096).unwrap().copy_to(&mut found);
    assert!(found == [7; 4096]);
}

#[test]
fn largest_request_is_carried_out_in_both_layouts() {
    largest_request_is_carried_out::<X86_64>(key::PROTOCOL_X86_64);
    largest_request_is_carried_out::<X86_32>(key::PROTOCOL_X86_32);
}

/// With all pages in one arena, requests may have the pages of others: nothing of a request stays mapped when it is answered.
#[test]
fn pages_of_large_requests_are_unmapped_before_they_are_answered() {
    let machine = Machine::new();
    let _back = start(&machine, DataPath::Map, 256);
    let device = machine.attach_disk(GUEST, XVDA, "ram:1048576");
    let guest = machine.domain(GUEST);
    let device = FrontendDevice::new(guest.clone(), device);
    let mut raw: RawFrontend = RawFrontend::connect(device, key::PROTOCOL_X86_64, false);
    for id in 0..20 {
        let data = guest.share(DomId::DOM0, 100, Access::ReadWrite).unwrap();
        let (read, pages) = raw.indirect(OP_READ, id, 0, data.refs());
        raw.send(&[read]);
        assert_eq!(raw.receive(1)[0].status, Status::OKAY);
        assert!(data.end().is_ok() && pages.end().is_ok());
    }
}
