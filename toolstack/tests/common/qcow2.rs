//! A chain of images for a guest's disk, and what is written and found in them.

use std::fs;

use super::Machine;
use super::program::{program, run};

pub(crate) const MIB: u64 = 1 << 20;
/// The whole disk: what is not written is the base's.
pub(crate) const DISK: u64 = 32 * MIB;

/// Makes a chain of images in the machine's directory, the base filled with a pattern.
pub(crate) fn make_images(machine: &Machine) {
    fs::create_dir(machine.path("below")).unwrap();
    machine.image("base.img", DISK);
    let pattern = format!("write -P 7 0 {DISK}");
    let base = machine.path("base.img");
    run(program("qemu-io", "qemu-utils").args(["-f", "raw", "-c", &pattern]).arg(&base));
    let create = |image: &str, backing: &str| {
        let image = machine.path(image);
        machine.ok(["disk", "create", image.to_str().unwrap(), "--backing", backing]);
    };
    create("below/middle.qcow2", "../base.img");
    create("top.qcow2", "below/middle.qcow2");
}

pub(crate) fn line(machine: &Machine) -> String {
    let top = machine.path("top.qcow2");
    format!("format=raw,vdev=xvda,access=rw,script=/bin/true,target=qcow2:{}", top.display())
}

/// Checks an image by QEMU's tool and ours, which agree: it is clean, or has leaks alone.
pub(crate) fn check(machine: &Machine, image: &str) {
    let image = machine.path(image);
    let mut theirs = program("qemu-img", "qemu-utils");
    let theirs = theirs.args(["check", "-q", "-f", "qcow2"]).arg(&image).status().unwrap().code();
    assert!([Some(0), Some(3)].contains(&theirs), "{}: {theirs:?}", image.display());
    let ours = machine.xpv(["disk", "check", image.to_str().unwrap()]).status.code();
    assert_eq!(ours, theirs, "{}", image.display());
}

/// Fills blocks of a guest's disk with a byte, and flushes them.
pub(crate) fn fill(machine: &Machine, with: u8, from: u64, bytes: u64) {
    let mut qemu_io = program("qemu-io", "qemu-utils");
    let write = format!("write -P {with} {from} {bytes}");
    run(qemu_io.args(["-f", "raw", "-c", &write, "-c", "flush"]).arg(machine.nbd("web", "xvda")));
}

/// Checks the bytes of an image at rest, or of an export.
pub(crate) fn check_bytes(image: impl AsRef<std::ffi::OsStr>, format: &str, with: u8, from: u64, bytes: u64) {
    let mut qemu_io = program("qemu-io", "qemu-utils");
    let read = format!("read -P {with} {from} {bytes}");
    let printed = run(qemu_io.args(["-r", "-f", format, "-c", &read]).arg(image.as_ref()));
    assert!(!printed.contains("failed"), "{:?}: {read}: {printed}", image.as_ref());
}
