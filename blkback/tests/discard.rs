//! Discards of a guest: a sparse image gives its blocks back and nothing else changes; and where they are not offered.

use std::os::unix::fs::MetadataExt;
use std::path::Path;

use blkback::engine::{Mode, Spec, open as open_image};
use blkfront::{DiscardLimits, Error, Operation, Request};
use ring_abi::blkif::{self, Discard, OP_WRITE, OP_WRITE_BARRIER, Status, key};
use testkit::block::{Backend, DiskSpec, GUEST, RawFrontend, XVDA, disk, open, options};
use testkit::random::bytes;
use testkit::{BOUND, FrontendDevice, Machine};
use xenbus::stats::Snapshot;
use xenstore::Nodes;

const MIB: usize = 1 << 20;

/// An image that has all its blocks.
fn image(bytes: &[u8]) -> tempfile::TempPath {
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), bytes).unwrap();
    file.as_file().sync_all().unwrap();
    file.into_temp_path()
}

/// Bytes that an image takes of its file system.
fn allocated(image: &Path) -> u64 {
    std::fs::metadata(image).unwrap().blocks() * 512
}

fn serve(spec: &DiskSpec) -> (Machine, Backend, xenbus::Device) {
    let machine = Machine::new();
    let back = Backend::start(&machine);
    let device = machine.attach_disk_as(GUEST, spec);
    (machine, back, device)
}

fn of(image: &Path) -> DiskSpec {
    disk(XVDA, image.to_str().unwrap())
}

fn stats(back: &Backend) -> Snapshot {
    back.registry.get((GUEST, XVDA)).unwrap().stats.unwrap().snapshot()
}

fn discard(id: u64, sector_number: u64, nr_sectors: u64) -> blkif::Request {
    blkif::Request::Discard(Discard { flag: 0, handle: 0, id, sector_number, nr_sectors })
}

#[test]
fn discarded_blocks_leave_the_image_and_no_other_byte_changes() {
    // More than one slice of 64 MiB, and not at its start.
    let content = bytes(1, 160 * MIB);
    let image = image(&content);
    let before = allocated(&image);
    let (machine, back, _) = serve(&of(&image));
    let mut disk = open(&machine.domain(GUEST), options());
    let block = std::fs::metadata(&image).unwrap().blksize() as u32;
    assert_eq!(disk.info().unwrap().discard, Some(DiscardLimits { granularity: block, alignment: 0 }));
    let (start, len) = (3 * MIB + 512, 130 * MIB);
    disk.discard(start as u64, len).unwrap();
    let freed = before - allocated(&image);
    assert!(freed >= (len - 2 * block as usize) as u64 && freed <= len as u64, "{freed} bytes of {len}");
    let left = std::fs::read(&image).unwrap();
    assert_eq!(left.len(), content.len());
    assert!(left[..start] == content[..start] && left[start + len..] == content[start + len..]);
    assert!(left[start..start + len].iter().all(|byte| *byte == 0));
    let operation = stats(&back).operation("discard").unwrap().clone();
    assert_eq!((operation.requests, operation.bytes), (1, len as u64));
}

#[test]
fn requests_are_answered_while_others_are_discarded() {
    let image = image(&bytes(2, 8 * MIB));
    let (machine, _back, _) = serve(&of(&image));
    let mut disk = open(&machine.domain(GUEST), options());
    for token in 0..16 {
        let half = (token % 2) * 4096;
        let request = match token % 4 {
            0 | 1 => Request::discard(token, 8192 + half, 2 * MIB),
            _ => {
                let buffer = Some(disk.buffer(4096).unwrap());
                Request { token, operation: Operation::Read, sector: half, bytes: 4096, buffer }
            }
        };
        disk.submit(request).unwrap();
    }
    let mut done = Vec::new();
    while disk.in_flight() > 0 {
        assert!(disk.wait(&mut done, Some(BOUND)).unwrap() > 0, "{} of 16 within {BOUND:?}", done.len());
    }
    done.iter().for_each(|completion| completion.check().unwrap());
}

#[test]
fn malformed_discards_fail_alone_and_discard_nothing() {
    let content = bytes(3, MIB);
    let image = image(&content);
    let (machine, _back, device) = serve(&of(&image));
    let device = FrontendDevice::new(machine.domain(GUEST), device);
    let mut raw: RawFrontend = RawFrontend::connect(device, key::PROTOCOL_X86_64, false);
    raw.send(&[
        discard(0, 0, 0),
        discard(1, 2048, 1),
        discard(2, 2047, 2),
        discard(3, u64::MAX, 2),
        discard(4, 8, u64::MAX),
        discard(5, u64::MAX - 6, 8),
        discard(6, 0, 1 << 63),
    ]);
    assert!(raw.receive(7).iter().all(|response| response.status == Status::ERROR));
    assert!(std::fs::read(&image).unwrap() == content);
    // A flag that is not offered is ignored, as blkif.h has it.
    let secure = Discard { flag: 1, handle: 0, id: 7, sector_number: 8, nr_sectors: 8 };
    raw.send(&[blkif::Request::Discard(secure)]);
    let response = raw.receive(1)[0];
    assert_eq!((response.status, response.operation), (Status::OKAY, blkif::OP_DISCARD));
}

#[test]
fn discard_is_complete_before_a_barrier_writes() {
    let image = image(&bytes(4, 4 * MIB));
    let (machine, _back, device) = serve(&of(&image));
    let device = FrontendDevice::new(machine.domain(GUEST), device);
    let mut raw: RawFrontend = RawFrontend::connect(device, key::PROTOCOL_X86_64, false);
    for round in 0..20u8 {
        raw.data.slice(0, 4096).unwrap().copy_from(&[round + 1; 4096]);
        let requests =
            [raw.io(OP_WRITE, 0, 8, &[1]), discard(1, 0, 8192), raw.io(OP_WRITE_BARRIER, 2, 0, &[0])];
        raw.send(&requests);
        assert!(raw.receive(3).iter().all(|response| response.status == Status::OKAY));
        assert_eq!(std::fs::read(&image).unwrap()[..4096], [round + 1; 4096]);
    }
}

#[test]
fn disk_whose_discard_is_off_or_that_is_read_only_offers_none() {
    let content = bytes(5, MIB);
    for (off, status) in [
        (DiskSpec { discard: false, ..disk(XVDA, "") }, Status::EOPNOTSUPP),
        (DiskSpec { writable: false, ..disk(XVDA, "") }, Status::ERROR),
    ] {
        let image = image(&content);
        let (machine, _back, device) = serve(&DiskSpec { target: Some(image.to_path_buf()), ..off });
        let guest = machine.domain(GUEST);
        let mut nodes = xenstore::Client::connect(&guest).unwrap();
        let back_path = device.back_path();
        let device = FrontendDevice::new(guest, device);
        let mut raw: RawFrontend = RawFrontend::connect(device, key::PROTOCOL_X86_64, false);
        let keys = nodes.directory(&back_path).unwrap();
        assert!(keys.iter().any(|key| key == "sectors"));
        assert!(!keys.iter().any(|key| key.starts_with("feature-discard") || key.ends_with("granularity")));
        raw.send(&[discard(0, 0, 8)]);
        assert_eq!(raw.receive(1)[0].status, status);
        assert!(std::fs::read(&image).unwrap() == content);
    }
}

#[test]
fn frontend_says_what_a_disk_does_not_offer() {
    let image = image(&bytes(6, MIB));
    let (machine, _back, _) = serve(&DiskSpec { discard: false, ..of(&image) });
    let mut disk = open(&machine.domain(GUEST), options());
    let error = disk.discard(0, 4096).unwrap_err();
    assert!(matches!(error, Error::NoDiscard) && error.to_string().contains("feature-discard"), "{error}");
}

#[test]
fn disk_in_memory_reads_as_zeroes_what_was_discarded() {
    let (machine, _back, _) = serve(&disk(XVDA, "ram:1048576"));
    let mut disk = open(&machine.domain(GUEST), options());
    disk.write_at(0, &[7; 8192]).unwrap();
    disk.discard(512, 1024).unwrap();
    let mut read = [0; 8192];
    disk.read_at(0, &mut read).unwrap();
    let expected: Vec<u8> = (0..8192).map(|at| if (512..1536).contains(&at) { 0 } else { 7 }).collect();
    assert!(read[..] == expected);
    assert!(matches!(disk.discard(1 << 20, 512), Err(Error::Range { .. })));
    assert!(matches!(disk.discard(1, 512), Err(Error::Alignment { .. })));
}

#[test]
fn image_keeps_its_length_when_it_is_opened() {
    let image = image(&[1; 5000]);
    let before = std::fs::metadata(&image).unwrap();
    drop(open_image(&Spec::raw(image.to_path_buf(), Mode::Write)).unwrap());
    let after = std::fs::metadata(&image).unwrap();
    assert_eq!((before.len(), before.blocks()), (after.len(), after.blocks()));
}
