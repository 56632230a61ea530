//! Devices of a running guest: attached, detached, grown and failed, and what the next device of the same number finds.

mod common;

use std::path::Path;
use std::time::{Duration, Instant};

use common::{Machine, eventually};
use nix::fcntl::{Flock, FlockArg};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use testkit::nbd::{BLOCK, Nbd};

const MIB: u64 = 1 << 20;

/// A machine with a guest `web` that has the disk xvda.
fn machine() -> Machine {
    let machine = Machine::new();
    let image = machine.image("a.img", 8 * MIB);
    machine.create("web", &format!("disk=['vdev=xvda,target={}']", image.display()));
    machine
}

/// The argument that attaches an image as a device.
fn disk(machine: &Machine, image: &str, dev: &str) -> String {
    format!("{},raw,{dev},rw", machine.path(image).display())
}

#[test]
fn grown_disk_has_its_new_size_for_new_nbd_clients() {
    let machine = machine();
    let socket = machine.dir().join("web/xvda.nbd");
    let mut old = Nbd::connect(&socket).unwrap();
    assert_eq!(old.size(), 8 * MIB);
    machine.image("a.img", 16 * MIB);
    eventually("a new client gets the new size", || {
        // dom0 looks at the size while the disk is used.
        old.read(0).unwrap();
        Nbd::connect(&socket).unwrap().size() == 16 * MIB
    });
    let mut new = Nbd::connect(&socket).unwrap();
    new.send_write(16 * MIB / BLOCK as u64 - 1, &[7; BLOCK]).unwrap();
    new.written().unwrap();
}

/// The nodes that report errors.
fn errors(machine: &Machine) -> Vec<(String, String)> {
    let is_error = |(path, _): &(String, String)| path.contains("/error/");
    machine.nodes().into_iter().filter(is_error).collect()
}

#[test]
fn attach_that_failed_leaves_nothing_to_the_next_of_its_number() {
    let machine = machine();
    machine.image("short.img", 0);
    machine.image("c.img", 8 * MIB);
    let socket = machine.dir().join("web/xvdc.nbd");
    for _ in 0..5 {
        machine.fails(["block-attach", "web", &disk(&machine, "short.img", "xvdc")]);
        assert_eq!(errors(&machine), []);
        machine.ok(["block-attach", "web", &disk(&machine, "c.img", "xvdc")]);
        assert_eq!(Nbd::connect(&socket).unwrap().size(), 8 * MIB);
        eventually("the client's end is noticed", || {
            machine.xpv(["block-detach", "web", "xvdc"]).status.success()
        });
    }
}

#[test]
fn disk_that_a_client_has_open_is_detached_once_it_is_closed_or_by_force() {
    let machine = machine();
    machine.image("b.img", 8 * MIB);
    let argument = disk(&machine, "b.img", "xvdb");
    let socket = machine.dir().join("web/xvdb.nbd");
    machine.ok(["block-attach", "web", &argument]);
    let mut client = Nbd::connect(&socket).unwrap();
    for _ in 0..2 {
        let error = machine.fails(["block-detach", "web", "xvdb"]);
        assert!(error.contains("disk xvdb: the guest has it in use"), "{error}");
        client.read(1).unwrap();
        // Nor does a restart of dom0 take the disk from its client.
        machine.await_dom0_after(machine.kill_dom0());
        client.send_write(1, &[1; BLOCK]).unwrap();
        client.written().unwrap();
    }
    drop(client);
    eventually("its export is closed", || !socket.exists());
    // The number is free again.
    machine.ok(["block-attach", "web", &argument]);
    let mut client = Nbd::connect(&socket).unwrap();
    client.read(1).unwrap();
    machine.ok(["block-detach", "web", "xvdb", "--force"]);
    eventually("the client is disconnected", || client.read(1).is_err());
    assert_eq!(errors(&machine), []);
}

#[test]
fn devices_that_are_detached_and_attached_again_always_connect() {
    let machine = machine();
    machine.image("b.img", 8 * MIB);
    let argument = disk(&machine, "b.img", "xvdb");
    for _ in 0..40 {
        machine.ok(["block-attach", "web", &argument]);
        machine.ok(["block-detach", "web", "xvdb"]);
        machine.ok(["network-attach", "web", "bridge=xenbr0,devid=7"]);
        machine.ok(["network-detach", "web", "7"]);
    }
}

#[test]
fn detach_without_dom0_changes_nothing_unless_forced() {
    let machine = machine();
    let socket = machine.dir().join("web/xvda.nbd");
    // So that it starts no other dom0.
    kill(Pid::from_raw(machine.supervisor()), Signal::SIGSTOP).unwrap();
    machine.kill_dom0();
    eventually("dom0 is gone", || machine.pid("Domain-0").is_none());
    let error = machine.fails(["block-detach", "web", "xvda"]);
    assert!(error.contains("dom0 is not running"), "{error}");
    drop(Nbd::connect(&socket).unwrap());
    machine.ok(["block-detach", "web", "xvda", "--force"]);
    eventually("its export is closed", || !socket.exists());
}

/// Whether no disk has an image.
fn is_free(image: &Path) -> bool {
    Flock::lock(std::fs::File::open(image).unwrap(), FlockArg::LockExclusiveNonblock).is_ok()
}

#[test]
fn image_is_free_once_its_detach_has_returned() {
    let machine = machine();
    let image = machine.image("b.img", 8 * MIB);
    let argument = disk(&machine, "b.img", "xvdb");
    let socket = machine.dir().join("web/xvdb.nbd");
    for round in 0..30 {
        machine.ok(["block-attach", "web", &argument]);
        assert!(!is_free(&image));
        if round % 3 == 0 {
            // By force, from a client that has it open.
            let mut client = Nbd::connect(&socket).unwrap();
            client.read(1).unwrap();
            machine.ok(["block-detach", "web", "xvdb", "--force"]);
        } else {
            machine.ok(["block-detach", "web", "xvdb"]);
        }
        assert!(is_free(&image), "round {round}");
    }
    // A guest that is destroyed, and one whose creation fails.
    let cfg = |name: &str, second: &str| {
        let disks = format!("'vdev=xvda,target={}','vdev=xvdb,target={second}'", image.display());
        machine.file(&format!("{name}.cfg"), &format!("name = '{name}'\ndisk=[{disks}]\n"))
    };
    let other = machine.image("c.img", 8 * MIB);
    machine.ok([Path::new("create"), &cfg("good", other.to_str().unwrap())]);
    machine.ok(["destroy", "good"]);
    assert!(is_free(&image));
    let short = machine.image("short.img", 0);
    machine.fails([Path::new("create"), &cfg("bad", short.to_str().unwrap())]);
    assert!(is_free(&image));
}

#[test]
fn image_in_use_is_refused_at_once_and_its_user_named() {
    let machine = machine();
    let image = machine.path("a.img");
    let refused_at_once = |arguments: &[&str], user: &str| {
        let start = Instant::now();
        let error = machine.fails(arguments);
        assert!(
            error.contains(image.to_str().unwrap()) && error.contains(&format!("in use by {user}")),
            "{error}"
        );
        assert!(start.elapsed() < Duration::from_secs(2), "after {:?}", start.elapsed());
    };
    let argument = disk(&machine, "a.img", "xvdb");
    let cfg = format!("name='other'\ndisk=['vdev=xvda,target={}']", image.display());
    let cfg = machine.file("other.cfg", &cfg);
    refused_at_once(&["block-attach", "web", &argument], "disk xvda of domain 1;");
    refused_at_once(&["create", cfg.to_str().unwrap()], "disk xvda of domain 1;");
    machine.ok(["block-detach", "web", "xvda"]);
    let lock = Flock::lock(std::fs::File::open(&image).unwrap(), FlockArg::LockExclusive).unwrap();
    let own = format!("process {} (", std::process::id());
    refused_at_once(&["block-attach", "web", &argument], &own);
    refused_at_once(&["create", cfg.to_str().unwrap()], &own);
    drop(lock);
    machine.ok(["block-attach", "web", &argument]);
}

/// The usual soft limit is enough for some 150 devices.
#[test]
fn hypervisor_and_dom0_may_open_as_many_files_as_the_host_allows() {
    let machine = Machine::new();
    for pid in [machine.hypervisor(), machine.pid("Domain-0").unwrap()] {
        let limits = std::fs::read_to_string(format!("/proc/{pid}/limits")).unwrap();
        let line = limits.lines().find(|line| line.starts_with("Max open files")).unwrap();
        let [soft, hard, ..] = *line["Max open files".len()..].split_whitespace().collect::<Vec<_>>() else {
            panic!("{line}")
        };
        assert_eq!(soft, hard, "{line}");
    }
}
