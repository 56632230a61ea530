//! Images of running guests that are committed into their backing files, and streamed, by commands.

mod common;

use std::fs;
use std::path::Path;
use std::process::Output;
use std::thread;

use common::program::{program, run};
use common::qcow2::{DISK, MIB, check, check_bytes, fill, line, make_images};
use common::{Machine, eventually, texts};
use serde_json::Value;
use testkit::nbd::Nbd;

/// Asks dom0 about the image of the first disk of the first guest.
fn ask(machine: &Machine, action: Option<&str>) -> Result<Value, String> {
    use std::io::{BufRead, BufReader, Write};
    let mut socket = std::os::unix::net::UnixStream::connect(machine.dir().join("control.sock"))
        .map_err(|e| e.to_string())?;
    let request = serde_json::json!({
        "version": 1, "command": "image", "domid": 1, "devid": 51712, "action": action,
    });
    writeln!(socket, "{request}").map_err(|e| e.to_string())?;
    let mut reply = String::new();
    BufReader::new(socket).read_line(&mut reply).map_err(|e| e.to_string())?;
    let reply: Value = serde_json::from_str(&reply).map_err(|e| e.to_string())?;
    match reply["error"]["message"].as_str() {
        Some(message) => Err(message.to_owned()),
        None => Ok(reply["ok"].clone()),
    }
}

fn layers(machine: &Machine) -> Vec<String> {
    let reply = ask(machine, None).unwrap();
    let layers = reply["image"]["layers"].as_array().unwrap();
    let name = |path: &Value| Path::new(path.as_str().unwrap()).file_name().unwrap().to_owned();
    layers.iter().map(|path| name(path).into_string().unwrap()).collect()
}

/// Bytes that an image at rest has of its own.
fn own_bytes(machine: &Machine, image: &str) -> u64 {
    let mut map = program("qemu-img", "qemu-utils");
    let map = run(map.args(["map", "-f", "qcow2", "--output=json"]).arg(machine.path(image)));
    let map: Value = serde_json::from_str(&map).unwrap();
    let own = map.as_array().unwrap().iter().filter(|part| part["depth"] == 0);
    own.map(|part| part["length"].as_u64().unwrap()).sum()
}

#[test]
fn image_is_committed_and_streamed_while_its_guest_runs() {
    let machine = Machine::new();
    make_images(&machine);
    machine.create("web", &format!("disk=['{}']", line(&machine)));
    fill(&machine, 1, 0, MIB);
    machine.ok(["disk", "snapshot", "web", "xvda", "kept.qcow2"]);
    assert_eq!(layers(&machine), ["top.qcow2", "kept.qcow2", "middle.qcow2", "base.img"]);
    fill(&machine, 2, MIB / 2, 4 * MIB);
    // What was kept may be read by others, and is not written then.
    let kept = machine.path("kept.qcow2");
    machine.ok(["block-attach", "web", &format!("qcow2:{},xvdb,r", kept.display())]);
    let error = machine.fails(["disk", "commit", "web", "xvda"]);
    assert!(error.contains("kept.qcow2: in use by disk xvdb of domain 1"), "{error}");
    machine.ok(["block-detach", "web", "xvdb"]);
    let mut reader = program("qemu-nbd", "qemu-utils");
    reader.args(["-r", "-f", "qcow2", "-k"]).arg(machine.path("nbd.sock")).arg(&kept);
    let reader = common::Guard(reader.spawn().unwrap());
    eventually("QEMU has the image", || machine.path("nbd.sock").exists());
    let error = machine.fails(["disk", "commit", "web", "xvda"]);
    assert!(error.contains("kept.qcow2: in use by process ") && error.contains("(qemu-nbd)"), "{error}");
    drop(reader);
    let (_, progress) = texts(&machine.xpv(["disk", "commit", "web", "xvda"]));
    assert!(progress.contains("commit: 100.0 %\n"), "{progress}");
    assert_eq!(layers(&machine), ["top.qcow2", "kept.qcow2", "middle.qcow2", "base.img"]);
    check_bytes(&kept, "qcow2", 2, MIB / 2, 4 * MIB);
    let export = machine.nbd("web", "xvda");
    let check_guest = |image: &str, format| {
        check_bytes(image, format, 1, 0, MIB / 2);
        check_bytes(image, format, 2, MIB / 2, 4 * MIB);
        check_bytes(image, format, 3, 8 * MIB, MIB);
        check_bytes(image, format, 7, 9 * MIB, DISK - 9 * MIB);
    };
    fill(&machine, 3, 8 * MIB, MIB);
    check_guest(&export, "raw");
    machine.ok(["disk", "stream", "web", "xvda"]);
    assert_eq!(layers(&machine), ["top.qcow2"]);
    check_guest(&export, "raw");
    for command in ["commit", "stream"] {
        let error = machine.fails(["disk", command, "web", "xvda"]);
        assert!(error.contains("found \"none\", expected an image with a backing file"), "{error}");
    }
    // Nobody has what was left.
    for left in ["kept.qcow2", "below/middle.qcow2"] {
        check(&machine, left);
    }
    machine.ok(["block-attach", "web", &format!("vdev=xvdb,target={}", machine.path("base.img").display())]);
    let error = machine.fails(["disk", "stream", "web", "xvdb"]);
    assert!(error.contains("found \"raw\", expected a qcow2 image"), "{error}");
    machine.ok(["destroy", "web"]);
    check(&machine, "top.qcow2");
    check_guest(machine.path("top.qcow2").to_str().unwrap(), "qcow2");
    assert_eq!(own_bytes(&machine, "top.qcow2"), DISK);
}

/// A guest on a long overlay of a short raw image, of which commands take a while to look at all.
fn long_disk(machine: &Machine) {
    let base = machine.image("base.img", 4 * MIB);
    fs::write(&base, vec![7; 4 << 20]).unwrap();
    let image = machine.path("long.qcow2");
    machine.ok(["disk", "create", image.to_str().unwrap(), "--size", "512G", "--backing", "base.img"]);
    machine.create("web", &format!("disk=['qcow2:{},xvda,w']", image.display()));
    fill(machine, 1, 0, MIB);
    fill(machine, 1, (1 << 39) - MIB, MIB);
}

fn check_long_disk(machine: &Machine) {
    let export = machine.nbd("web", "xvda");
    for (with, from, bytes) in [(1, 0, MIB), (7, MIB, 3 * MIB), (1, (1 << 39) - MIB, MIB)] {
        check_bytes(&export, "raw", with, from, bytes);
    }
}

/// Runs a command on the guest's disk, and does something once it is on the way.
fn amid(machine: &Machine, command: &str, act: impl FnOnce()) -> Output {
    thread::scope(|scope| {
        let running = scope.spawn(|| machine.xpv(["disk", command, "web", "xvda"]));
        eventually("the change is on the way", || {
            let job = ask(machine, None).unwrap_or_default()["job"].clone();
            job["action"] == command && job["done"].as_u64() > Some(MIB) && job["total"] == 1u64 << 39
        });
        act();
        running.join().unwrap()
    })
}

#[test]
fn change_is_cancelled_and_goes_on_where_it_is_run_again() {
    let machine = Machine::new();
    long_disk(&machine);
    for command in ["commit", "stream"] {
        let output = amid(&machine, command, || {
            let error = ask(&machine, Some("commit")).unwrap_err();
            assert_eq!(error, format!("found a {command} of the image that goes on, expected no change"));
            ask(&machine, Some("cancel")).unwrap();
        });
        let (_, stderr) = texts(&output);
        assert!(!output.status.success() && stderr.contains(&format!("{command}: cancelled")), "{stderr}");
        assert_eq!(layers(&machine), ["long.qcow2", "base.img"]);
        let error = ask(&machine, Some("cancel")).unwrap_err();
        assert!(error.contains("expected a commit or stream"), "{error}");
        check_long_disk(&machine);
        fill(&machine, 1, MIB / 2, MIB / 2);
        machine.ok(["disk", command, "web", "xvda"]);
        check_long_disk(&machine);
    }
    assert_eq!(fs::metadata(machine.path("base.img")).unwrap().len(), 1 << 39, "it is as long as the disk");
    machine.ok(["destroy", "web"]);
    check(&machine, "long.qcow2");
}

#[test]
fn dom0_that_is_killed_amid_a_change_loses_nothing_and_the_change_goes_on_where_it_is_run_again() {
    let machine = Machine::new();
    long_disk(&machine);
    for command in ["commit", "stream"] {
        let output = amid(&machine, command, || {
            machine.kill_dom0();
        });
        let (_, stderr) = texts(&output);
        let expected = format!("{command}: dom0 was replaced meanwhile");
        assert!(!output.status.success() && stderr.contains(&expected), "{stderr}");
        check_long_disk(&machine);
        fill(&machine, 1, MIB / 2, MIB / 2);
        machine.ok(["disk", command, "web", "xvda"]);
        check_long_disk(&machine);
    }
    assert_eq!(layers(&machine), ["long.qcow2"]);
    machine.ok(["destroy", "web"]);
    check(&machine, "long.qcow2");
}

#[test]
fn disk_that_is_only_read_is_not_changed() {
    let machine = Machine::new();
    make_images(&machine);
    let image = machine.path("top.qcow2");
    machine.create("web", &format!("disk=['qcow2:{},xvda,r']", image.display()));
    let _export = Nbd::connect(&machine.dir().join("web/xvda.nbd")).unwrap();
    for command in ["commit", "stream"] {
        let error = machine.fails(["disk", command, "web", "xvda"]);
        assert!(error.contains("found a disk that is only read, expected one that is written"), "{error}");
    }
}
