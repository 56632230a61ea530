//! What programs discard and fill with zeroes through a guest's export: the image gives its blocks back, and no other byte changes.

mod common;

use std::os::unix::fs::MetadataExt;
use std::path::Path;

use common::Machine;
use common::program::{program, run};

const MIB: u64 = 1 << 20;

/// Runs commands of qemu-io on an export.
fn qemu_io(uri: &str, commands: &[&str]) -> String {
    let mut qemu_io = program("qemu-io", "qemu-utils");
    qemu_io.args(["-f", "raw", "-d", "unmap"]);
    for command in commands {
        qemu_io.args(["-c", command]);
    }
    run(qemu_io.arg(uri))
}

fn blocks(image: &Path) -> u64 {
    std::fs::metadata(image).unwrap().blocks()
}

fn is_filled(bytes: &[u8], with: u8) -> bool {
    bytes.iter().all(|byte| *byte == with)
}

#[test]
fn discarded_blocks_leave_the_image_and_zeroes_are_written() {
    let machine = Machine::new();
    let image = machine.image("a.img", 96 * MIB);
    machine.create("web", &format!("disk=['vdev=xvda,target={}']", image.display()));
    let uri = machine.nbd("web", "xvda");
    qemu_io(&uri, &["write -P 7 0 96M", "flush"]);
    let full = blocks(&image);
    assert!(full * 512 >= 96 * MIB, "{full} blocks of 512 bytes");
    qemu_io(&uri, &["discard 8M 72M", "write -z 81M 9M", "flush"]);
    let freed = (full - blocks(&image)) * 512;
    assert!(freed > 70 * MIB && freed <= 72 * MIB, "{freed} bytes");
    let bytes = std::fs::read(&image).unwrap();
    let part = |start: u64, end: u64| &bytes[(start * MIB) as usize..(end * MIB) as usize];
    assert!(is_filled(part(0, 8), 7) && is_filled(part(80, 81), 7) && is_filled(part(90, 96), 7));
    assert!(is_filled(part(8, 80), 0) && is_filled(part(81, 90), 0));
    // Written again, it has its blocks.
    qemu_io(&uri, &["write -P 9 8M 72M", "read -P 9 8M 72M", "read -P 7 0 8M", "flush"]);
    assert!(full.abs_diff(blocks(&image)) < 2048, "{} of {full} blocks", blocks(&image));
}

#[test]
fn disk_without_discard_says_so_and_keeps_its_blocks() {
    let machine = Machine::new();
    let image = machine.image("a.img", 4 * MIB);
    machine.create("web", &format!("disk=['vdev=xvda,no-discard,target={}']", image.display()));
    let uri = machine.nbd("web", "xvda");
    qemu_io(&uri, &["write -P 7 0 4M", "flush"]);
    let full = blocks(&image);
    // QEMU does nothing where an export has no TRIM; zeroes it writes.
    qemu_io(&uri, &["discard 0 4M", "write -z 0 1M", "flush"]);
    assert_eq!(blocks(&image), full);
    let bytes = std::fs::read(&image).unwrap();
    let (zeroes, rest) = bytes.split_at(MIB as usize);
    assert!(is_filled(zeroes, 0) && is_filled(rest, 7));
}

#[test]
fn zeroes_become_holes_where_the_disks_line_says_so() {
    let machine = Machine::new();
    let image = machine.image("a.img", 8 * MIB);
    machine.create("web", &format!("disk=['vdev=xvda,detect-zeroes=unmap,target={}']", image.display()));
    let uri = machine.nbd("web", "xvda");
    qemu_io(&uri, &["write -P 7 0 8M", "flush"]);
    let full = blocks(&image);
    // As zeroes, and as data.
    qemu_io(&uri, &["write -z 1M 2M", "write -P 0 4M 3M", "flush", "read -P 0 1M 2M", "read -P 7 3M 1M"]);
    let freed = (full - blocks(&image)) * 512;
    assert!(freed > 4 * MIB && freed <= 5 * MIB, "{freed} bytes");
    let bytes = std::fs::read(&image).unwrap();
    let part = |start: u64, end: u64| &bytes[(start * MIB) as usize..(end * MIB) as usize];
    assert!(is_filled(part(1, 3), 0) && is_filled(part(4, 7), 0));
    assert!(is_filled(part(0, 1), 7) && is_filled(part(3, 4), 7) && is_filled(part(7, 8), 7));
}
