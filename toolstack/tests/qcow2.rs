//! A guest on a qcow2 image over a qcow2 image over a raw one, by xl's line: fio verifies it through the guest's export while dom0 is killed,
//! and QEMU's tools find in the images what the guest had.
//!
//! `XPV_KILLS=1000 cargo test --release -p toolstack --test qcow2 -- --nocapture` kills it so often. The seed is printed; `XPV_TEST_SEED` sets it.

mod common;

use std::fs;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use common::program::{program, run};
use common::qcow2::{DISK, MIB, check, check_bytes, fill, line, make_images};
use common::{Machine, eventually};
use rand::rngs::SmallRng;
use rand::{RngExt, SeedableRng};
use testkit::StopOnDrop;
use testkit::environment::number;
use testkit::nbd::{BLOCK, Nbd};

/// What fio writes, from the start of the disk.
const FIO: u64 = 24 * MIB;
/// Snapshots that are made while dom0 is killed.
const SNAPSHOTS: usize = 4;
/// Kills of a run that nobody asked for more.
const KILLS: usize = 8;

/// Verifies the disk by fio, once at least, until `stop` is set.
fn verify_by_fio(socket: &Path, stop: &AtomicBool) {
    let mut rounds = 0;
    while rounds == 0 || !stop.load(Ordering::Relaxed) {
        let mut fio = program("fio", "fio");
        fio.args(["--name=load", "--ioengine=nbd", "--rw=randrw", "--bsrange=4k-64k", "--iodepth=16"]);
        fio.args(["--verify=crc32c", "--verify_fatal=1", "--verify_state_save=0", "--fsync=64"]);
        fio.arg(format!("--randseed={rounds}")).arg(format!("--size={FIO}"));
        run(fio.arg(format!("--uri=nbd+unix:///?socket={}", socket.display())));
        rounds += 1;
    }
}

#[test]
fn image_over_images_verifies_while_dom0_is_killed_and_is_what_qemu_finds() {
    let kills = number("XPV_KILLS").unwrap_or(KILLS);
    let seed = number("XPV_TEST_SEED").unwrap_or_else(rand::random);
    println!("XPV_TEST_SEED={seed} XPV_KILLS={kills}");
    let mut random = SmallRng::seed_from_u64(seed);
    let machine = Machine::new();
    make_images(&machine);
    let below = ["base.img", "below/middle.qcow2"].map(|name| machine.path(name));
    let before = below.each_ref().map(|image| fs::read(image).unwrap());
    machine.create("web", &format!("disk=['{}']", line(&machine)));
    let socket = machine.dir().join("web/xvda.nbd");
    let mut export = Nbd::connect(&socket).unwrap();
    assert_eq!(export.size(), DISK);
    let last = DISK / BLOCK as u64 - 1;
    assert_eq!(export.read(last).unwrap(), [7; BLOCK]);
    let stop = AtomicBool::new(false);
    thread::scope(|scope| {
        let stop_on_drop = StopOnDrop(&stop);
        let fio = scope.spawn(|| verify_by_fio(&socket, &stop));
        for kill in 0..kills {
            thread::park_timeout(Duration::from_micros(random.random_range(0..100_000)));
            // Whether it is made or not, no write is lost.
            let snapshot = (kill % 2 == 1 && kill < 2 * SNAPSHOTS).then(|| {
                let name = format!("kept-{kill}.qcow2");
                let machine = &machine;
                let snapshot = scope.spawn(move || machine.xpv(["disk", "snapshot", "web", "xvda", &name]));
                thread::park_timeout(Duration::from_micros(random.random_range(0..60_000)));
                snapshot
            });
            machine.await_dom0_after(machine.kill_dom0());
            // It serves: the guest's next request is answered.
            export.send_write(last, &[kill as u8; BLOCK]).unwrap();
            export.written().unwrap();
            assert_eq!(export.read(last).unwrap(), [kill as u8; BLOCK]);
            assert!(!fio.is_finished(), "kill {kill}");
            if let Some(snapshot) = snapshot {
                let (_, stderr) = common::texts(&snapshot.join().unwrap());
                println!("kill {kill}: snapshot: {stderr}");
            }
        }
        drop(stop_on_drop);
        fio.join().unwrap();
    });
    let copy = machine.path("copy.img");
    let mut convert = program("qemu-img", "qemu-utils");
    run(convert.args(["convert", "-f", "raw", "-O", "raw"]).arg(machine.nbd("web", "xvda")).arg(&copy));
    drop(export);
    machine.ok(["destroy", "web"]);
    let mut compare = program("qemu-img", "qemu-utils");
    compare.args(["compare", "-f", "raw", "-F", "qcow2"]).arg(&copy).arg(machine.path("top.qcow2"));
    run(&mut compare);
    check(&machine, "top.qcow2");
    check(&machine, "below/middle.qcow2");
    let after = below.each_ref().map(|image| fs::read(image).unwrap());
    assert!(before == after, "what is below is not written");
}

#[test]
fn image_in_use_is_refused_by_the_rest_and_a_header_in_a_raw_image_is_data() {
    let machine = Machine::new();
    make_images(&machine);
    machine.create("web", &format!("disk=['{}']", line(&machine)));
    let top = machine.path("top.qcow2");
    let top = top.to_str().unwrap();
    for args in [&["disk", "check", top][..], &["disk", "resize", top, "1G"]] {
        let error = machine.fails(args);
        assert!(error.contains("in use") && !error.contains("params"), "{args:?}: {error}");
        assert_eq!(args[1] == "check", error.contains("qemu-img check -U"), "{error}");
    }
    let base = format!("vdev=xvdb,target={}", machine.path("base.img").display());
    let error = machine.fails(["block-attach", "web", &base]);
    assert!(error.contains("base.img: in use by disk xvda of domain 1"), "{error}");
    machine.ok(["block-attach", "web", &format!("access=r,{base}")]);
    machine.ok(["block-detach", "web", "xvdb"]);
    machine.ok(["block-detach", "web", "xvda"]);
    // Raw: the guest sees the header, and the disk is as long as the file.
    machine.ok(["block-attach", "web", &format!("vdev=xvdc,target={top}")]);
    let mut export = Nbd::connect(&machine.dir().join("web/xvdc.nbd")).unwrap();
    assert_eq!(export.read(0).unwrap()[..4], *b"QFI\xfb");
    assert!(export.size() < DISK);
}

#[test]
fn snapshot_keeps_what_was_written_and_the_guest_goes_on_in_the_images_place() {
    let machine = Machine::new();
    make_images(&machine);
    machine.create("web", &format!("disk=['{}']", line(&machine)));
    fill(&machine, 1, 0, MIB);
    fill(&machine, 1, 2 * MIB, MIB);
    machine.ok(["disk", "snapshot", "web", "xvda", "before.qcow2"]);
    fill(&machine, 2, 0, MIB);
    machine.ok(["disk", "snapshot", "web", "xvda", "between.qcow2"]);
    fill(&machine, 3, 0, MIB / 2);
    let export = machine.nbd("web", "xvda");
    let check_guest = || {
        for (with, from, bytes) in [
            (3, 0, MIB / 2),
            (2, MIB / 2, MIB / 2),
            (7, MIB, MIB),
            (1, 2 * MIB, MIB),
            (7, 3 * MIB, DISK - 3 * MIB),
        ] {
            check_bytes(&export, "raw", with, from, bytes);
        }
    };
    check_guest();
    machine.kill_dom0();
    check_guest();
    fill(&machine, 4, 4 * MIB, MIB);
    for (name, expected) in [
        ("before.qcow2", "before.qcow2: making the overlay: File exists"),
        ("a/b", "NAME: image: found \"a/b\", expected a file's name"),
    ] {
        let error = machine.fails(["disk", "snapshot", "web", "xvda", name]);
        assert!(error.contains(expected), "{error}");
    }
    let raw = machine.image("raw.img", MIB);
    machine.ok(["block-attach", "web", &format!("vdev=xvdb,target={}", raw.display())]);
    let error = machine.fails(["disk", "snapshot", "web", "xvdb", "kept.img"]);
    assert!(error.contains("found \"raw\", expected a qcow2 image"), "{error}");
    machine.ok(["destroy", "web"]);
    for image in ["top.qcow2", "between.qcow2", "before.qcow2", "below/middle.qcow2"] {
        check(&machine, image);
    }
    check_bytes(machine.path("before.qcow2"), "qcow2", 1, 0, MIB);
    check_bytes(machine.path("between.qcow2"), "qcow2", 2, 0, MIB);
    check_bytes(machine.path("top.qcow2"), "qcow2", 3, 0, MIB / 2);
    check_bytes(machine.path("top.qcow2"), "qcow2", 4, 4 * MIB, MIB);
    let names: Vec<_> = fs::read_dir(machine.path("")).unwrap().map(|e| e.unwrap().file_name()).collect();
    let images = names.iter().filter(|name| name.to_string_lossy().ends_with(".qcow2"));
    assert_eq!(images.count(), 3, "{names:?}");
}

#[test]
fn disk_of_a_running_guest_grows() {
    let machine = Machine::new();
    let raw = machine.image("raw.img", MIB);
    let alone = machine.path("alone.qcow2");
    machine.ok(["disk", "create", alone.to_str().unwrap(), "--size", "4M"]);
    let disks = format!("disk=['qcow2:{},xvda,w', '{},raw,xvdb']", alone.display(), raw.display());
    machine.create("web", &disks);
    fill(&machine, 1, 0, 4 * MIB);
    for (dev, size, bytes) in [("xvda", "1G", 1 << 30), ("xvdb", "2M", 2 * MIB)] {
        machine.ok(["disk", "resize", "web", dev, size]);
        let export = machine.dir().join(format!("web/{dev}.nbd"));
        eventually("the guest has the new size", || Nbd::connect(&export).unwrap().size() == bytes);
        let error = machine.fails(["disk", "resize", "web", dev, "512k"]);
        assert!(error.contains(&format!("found \"524288\", expected {bytes} at least")), "{error}");
    }
    fill(&machine, 2, 1023 * MIB, MIB);
    let export = machine.nbd("web", "xvda");
    check_bytes(&export, "raw", 1, 0, 4 * MIB);
    check_bytes(&export, "raw", 0, 4 * MIB, MIB);
    check_bytes(&export, "raw", 2, 1023 * MIB, MIB);
    machine.ok(["destroy", "web"]);
    check(&machine, "alone.qcow2");
    assert_eq!(fs::metadata(raw).unwrap().len(), 2 * MIB);
}

#[test]
fn interrupted_snapshot_is_finished_before_the_image_is_changed() {
    let machine = Machine::new();
    make_images(&machine);
    machine.create("web", &format!("disk=['{}']", line(&machine)));
    fill(&machine, 1, 0, MIB);
    // As a command leaves it that was killed before it has asked dom0.
    let (top, kept) = (machine.path("top.qcow2"), machine.path("kept.qcow2"));
    fs::rename(&top, &kept).unwrap();
    let mut create = program("qemu-img", "qemu-utils");
    create.args(["create", "-q", "-u", "-f", "qcow2", "-b", "./kept.qcow2", "-F", "qcow2"]).arg(&top);
    run(create.arg(DISK.to_string()));
    machine.ok(["disk", "resize", "web", "xvda", &(2 * DISK).to_string()]);
    fill(&machine, 2, DISK, MIB);
    machine.await_dom0_after(machine.kill_dom0());
    let export = machine.nbd("web", "xvda");
    check_bytes(&export, "raw", 1, 0, MIB);
    check_bytes(&export, "raw", 2, DISK, MIB);
    // Any other file at the path is none that the guest can go over to.
    fs::rename(&top, machine.path("elsewhere.qcow2")).unwrap();
    machine.ok(["disk", "create", top.to_str().unwrap(), "--size", "1G"]);
    let error = machine.fails(["disk", "resize", "web", "xvda", "1G"]);
    assert!(error.contains("top.qcow2: found another file than the one that the guest has"), "{error}");
}

#[test]
fn commands_of_the_readme_make_attach_and_keep_images() {
    let page = fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("../README.md")).unwrap();
    let lines = page
        .lines()
        .filter(|line| line.starts_with("xpv disk ") || line.starts_with("xpv ") && line.contains("qcow2"));
    let commands: Vec<&str> = lines.map(|line| line.split('#').next().unwrap().trim()).collect();
    for what in ["xpv disk create", "xpv block-attach web", "xpv disk snapshot web", "xpv disk commit web"] {
        assert!(commands.iter().any(|command| command.starts_with(what)), "{what}: {commands:?}");
    }
    let machine = Machine::new();
    machine.image("base.img", DISK);
    machine.create("web", "");
    let srv = format!("{}/", machine.path("").display());
    for command in commands {
        let command = command.replace("/srv/", &srv);
        machine.ok(command.split_whitespace().skip(1));
    }
    let kept = fs::read_dir(machine.path("")).unwrap().map(|entry| entry.unwrap().file_name());
    assert_eq!(kept.filter(|name| name.to_string_lossy().ends_with(".qcow2")).count(), 2);
}
