//! Blocking calls beside requests that the caller has submitted.

use blkfront::{Disk, Error, Operation, Request};
use ring_abi::blkif::Status;
use tempfile::NamedTempFile;
use testkit::Machine;
use testkit::block::{Backend, GUEST, XVDA, open, options};

const MIB: u64 = 1 << 20;

/// A disk of 1 MiB, and what serves it.
fn disk_of_zeroes() -> (impl Sized, Disk) {
    let file = NamedTempFile::new().unwrap();
    file.as_file().set_len(MIB).unwrap();
    let machine = Machine::new();
    let back = Backend::start(&machine);
    machine.attach_disk(GUEST, XVDA, file.path().to_str().unwrap());
    let disk = open(&machine.domain(GUEST), options());
    ((back, machine, file), disk)
}

#[test]
fn blocking_call_while_a_request_is_in_flight_is_refused_and_takes_no_completion() {
    let (_served, mut disk) = disk_of_zeroes();
    let buffer = Some(disk.buffer(4096).unwrap());
    disk.submit(Request { token: 7, operation: Operation::Read, sector: 0, bytes: 4096, buffer }).unwrap();
    let refused = disk.read_at(4096, &mut [0; 4096]).unwrap_err();
    assert!(matches!(refused, Error::InFlight { requests: 1 }), "{refused}");
    let mut completions = Vec::new();
    while completions.is_empty() {
        disk.wait(&mut completions, None).unwrap();
    }
    assert_eq!(completions[0].request.token, 7);
    disk.read_at(4096, &mut [0; 4096]).unwrap();
    disk.close().unwrap();
}

#[test]
fn disk_moves_to_another_thread_with_its_requests_in_flight() {
    let (_served, mut disk) = disk_of_zeroes();
    let buffer = disk.buffer(4096).unwrap();
    buffer.fill(&[7; 4096]);
    let write =
        Request { token: 1, operation: Operation::Write, sector: 8, bytes: 4096, buffer: Some(buffer) };
    disk.submit(write).unwrap();
    disk.commit().unwrap();
    let other = std::thread::spawn(move || {
        let mut completions = Vec::new();
        while completions.is_empty() {
            disk.wait(&mut completions, None).unwrap();
        }
        assert_eq!(completions[0].status, Status::OKAY);
        let mut read = [0; 4096];
        disk.read_at(4096, &mut read).unwrap();
        disk.close().unwrap();
        read
    });
    assert_eq!(other.join().unwrap(), [7; 4096]);
}
