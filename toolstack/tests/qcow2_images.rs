//! A guest's qcow2 disk over a chain of images on a whole machine: dom0 has no path of them, its opener opens all, and neither loses what
//! the guest was answered when it is killed.

mod common;

use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::process::Command;

use common::{Machine, eventually};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use testkit::nbd::{BLOCK, Nbd};

const MIB: u64 = 1 << 20;

fn qemu_img(arguments: &[&str], images: &[&Path]) -> String {
    let output = Command::new("qemu-img").args(arguments).args(images).output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout) + String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{arguments:?}: {text}");
    text.into_owned()
}

fn create(image: &Path, below: &str, format: &str) {
    qemu_img(&["create", "-q", "-f", "qcow2", "-b", below, "-F", format], &[image]);
}

#[test]
fn guest_over_a_chain_of_images_keeps_its_data_when_dom0_and_the_opener_are_killed() {
    let machine = Machine::new();
    let base = machine.image("base.img", 8 * MIB);
    create(&machine.path("golden.qcow2"), "base.img", "raw");
    let image = machine.path("web.qcow2");
    create(&image, "golden.qcow2", "qcow2");
    machine.create("web", &format!("disk=['format=qcow2,vdev=xvda,target={}']", image.display()));
    let mut disk = Nbd::connect(&machine.dir().join("web/xvda.nbd")).unwrap();
    assert_eq!(disk.size(), 8 * MIB);
    for round in 0..4u8 {
        // Each is an allocation.
        for cluster in 0..8u64 {
            let block = cluster * 16 * 4 + u64::from(round) * 16;
            disk.send_write(block, &[round + 1; BLOCK]).unwrap();
            disk.written().unwrap();
        }
        let pid = if round % 2 == 0 { machine.pid("Domain-0").unwrap() } else { machine.opener() };
        kill(Pid::from_raw(pid), Signal::SIGKILL).unwrap();
        disk.send_write(u64::from(round), &[0x80 | round; BLOCK]).unwrap();
        disk.written().expect("the next dom0 answers it");
    }
    for round in 0..4u8 {
        assert_eq!(
            disk.read(u64::from(round)).unwrap(),
            [if round == 0 { 0x80 } else { 0x80 | round }; BLOCK]
        );
        for cluster in 1..8u64 {
            let block = cluster * 16 * 4 + u64::from(round) * 16;
            assert_eq!(disk.read(block).unwrap(), [round + 1; BLOCK], "cluster {cluster}, round {round}");
        }
    }
    drop(disk);
    machine.ok(["destroy", "web"]);
    eventually("the image is closed", || {
        let check = Command::new("qemu-img").args(["check", "-f", "qcow2"]).arg(&image).output().unwrap();
        // 3: leaks alone.
        matches!(check.status.code(), Some(0 | 3))
    });
    assert!(std::fs::read(base).unwrap().iter().all(|byte| *byte == 0), "the base is written");
}

#[test]
fn image_without_a_base_grows_by_what_the_guest_writes() {
    let machine = Machine::new();
    let image = machine.path("a.qcow2");
    qemu_img(&["create", "-q", "-f", "qcow2"], &[&image, Path::new("8M")]);
    let before = std::fs::metadata(&image).unwrap().len();
    machine.create("web", &format!("disk=['format=qcow2,vdev=xvda,target={}']", image.display()));
    let mut disk = Nbd::connect(&machine.dir().join("web/xvda.nbd")).unwrap();
    for block in [3, 700, 1999] {
        disk.send_write(block, &[7; BLOCK]).unwrap();
        disk.written().unwrap();
        assert_eq!(disk.read(block).unwrap(), [7; BLOCK]);
        assert_eq!(disk.read(block + 1).unwrap(), [0; BLOCK]);
    }
    let metadata = || std::fs::metadata(&image).unwrap();
    // While it is served the file is longer, by a hole for clusters to come.
    let three_clusters_and_a_table = before.next_multiple_of(1 << 16) + (4 << 16);
    let allocated = metadata().blocks() * 512;
    assert!(allocated <= three_clusters_and_a_table, "{allocated} bytes are allocated");
    drop(disk);
    machine.ok(["destroy", "web"]);
    eventually("the image is closed", || metadata().len() == three_clusters_and_a_table);
}

#[test]
fn each_image_of_a_chain_must_be_where_images_may_be_and_is_refused_by_its_name() {
    let directory = tempfile::tempdir().unwrap();
    let inside = directory.path().join("web.qcow2");
    let machine = Machine::with(&format!("images = ['{}']", directory.path().display()));
    let outside = machine.image("base.img", MIB);
    create(&inside, outside.to_str().unwrap(), "raw");
    machine.create("web", "");
    let attach = |image: &Path| {
        machine.fails(["block-attach", "web", &format!("format=qcow2,vdev=xvda,target={}", image.display())])
    };
    let error = attach(&inside);
    assert!(
        error.contains("found an image elsewhere") && error.contains(outside.to_str().unwrap()),
        "{error}"
    );
    // The guest cannot give a raw image a backing file by writing a header into it.
    let raw = directory.path().join("raw.img");
    std::fs::copy(&inside, &raw).unwrap();
    let bytes = std::fs::metadata(&raw).unwrap().len();
    machine.ok(["block-attach", "web", &format!("format=raw,vdev=xvdb,target={}", raw.display())]);
    let disk = Nbd::connect(&machine.dir().join("web/xvdb.nbd")).unwrap();
    assert_eq!(disk.size(), bytes / 512 * 512);
    // An image that is no qcow2 image is not taken for one.
    let zeroes = directory.path().join("zeroes");
    std::fs::write(&zeroes, [0; 4096]).unwrap();
    let error = attach(&zeroes);
    assert!(error.contains("expected a qcow2 image"), "{error}");
}
