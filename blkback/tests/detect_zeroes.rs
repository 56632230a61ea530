//! Writes of zeroes that become holes, where the key `detect-zeroes` says so.

use std::os::unix::fs::MetadataExt;
use std::path::Path;

use blkfront::Disk;
use ring_abi::blkif::key;
use testkit::Machine;
use testkit::block::{Backend, DiskSpec, GUEST, XVDA, disk, open, options};
use testkit::random::bytes;
use xenbus::Device;
use xenstore::Nodes;

const MIB: usize = 1 << 20;

/// An image that has all its blocks, and what it holds.
fn image() -> (tempfile::TempPath, Vec<u8>) {
    let content = bytes(1, 4 * MIB);
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), &content).unwrap();
    file.as_file().sync_all().unwrap();
    (file.into_temp_path(), content)
}

/// Bytes that an image takes of its file system.
fn allocated(image: &Path) -> u64 {
    std::fs::metadata(image).unwrap().blocks() * 512
}

/// A disk of this image; the key is set as a hotplug script does, when the disk is open already.
fn connect(image: &Path, discard: bool, key: Option<&str>) -> (Machine, Backend, Disk, Device) {
    let machine = Machine::new();
    let back = Backend::start(&machine);
    let spec = DiskSpec { discard, ..disk(XVDA, image.to_str().unwrap()) };
    let device = machine.attach_disk_as(GUEST, &spec);
    machine.wait_for_state(&device.back_path(), xenbus::XenbusState::InitWait);
    if let Some(value) = key {
        machine.client().write(&format!("{}/{}", device.back_path(), key::DETECT_ZEROES), value).unwrap();
    }
    let disk = open(&machine.domain(GUEST), options());
    (machine, back, disk, device)
}

#[test]
fn zeroes_that_are_written_leave_the_image() {
    let (image, mut content) = image();
    let before = allocated(&image);
    let (_machine, back, mut disk, _) = connect(&image, true, Some("unmap"));
    // Not at the start of an extent, and more than one request.
    let (start, len) = (MIB + 512, 2 * MIB);
    disk.write_at(start as u64, &vec![0; len]).unwrap();
    content[start..start + len].fill(0);
    // Less than an extent, and what is no zeroes.
    disk.write_at(0, &[0; 512]).unwrap();
    content[..512].fill(0);
    let other = [vec![0; MIB / 2], vec![1; 512]].concat();
    disk.write_at(4096, &other).unwrap();
    content[4096..][..other.len()].copy_from_slice(&other);
    disk.flush().unwrap();
    let freed = before - allocated(&image);
    assert!(freed >= (len - 2 * 4096) as u64 && freed <= (len + MIB / 2) as u64, "{freed} bytes");
    assert!(std::fs::read(&image).unwrap() == content);
    let mut read = vec![1; content.len()];
    disk.read_at(0, &mut read).unwrap();
    assert!(read == content);
    // They are writes to the frontend.
    let stats = back.registry.get((GUEST, XVDA)).unwrap().stats.unwrap().snapshot();
    assert_eq!(stats.operation("discard").unwrap().requests, 0);
    // And what was freed can be written again.
    disk.write_at(start as u64, &vec![2; MIB]).unwrap();
    content[start..start + MIB].fill(2);
    assert!(std::fs::read(&image).unwrap() == content);
    disk.close().unwrap();
}

#[test]
fn zeroes_are_written_where_they_are_not_looked_for() {
    for (discard, key) in [(true, None), (true, Some("off")), (false, Some("unmap"))] {
        let (image, mut content) = image();
        let before = allocated(&image);
        let (_machine, _back, mut disk, _) = connect(&image, discard, key);
        disk.write_at(MIB as u64, &vec![0; MIB]).unwrap();
        disk.flush().unwrap();
        content[MIB..2 * MIB].fill(0);
        assert!(std::fs::read(&image).unwrap() == content);
        assert_eq!(allocated(&image), before, "{discard}, {key:?}");
        disk.close().unwrap();
    }
}
