//! The process that opens images for dom0: it ends with dom0 and dom0 with it, what it refuses is refused with its reason, and an image
//! whose opening takes long keeps no other waiting.

mod common;

use std::io::BufRead;
use std::path::Path;
use std::process::{Command, Stdio};

use common::{Guard, Machine, command, eventually, texts};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use testkit::nbd::{BLOCK, Nbd};
use xenstore::Nodes;

const MIB: u64 = 1 << 20;

fn runs(pid: i32) -> bool {
    Path::new(&format!("/proc/{pid}")).exists()
}

#[test]
fn dom0_and_its_opener_end_with_each_other_and_a_guests_disk_is_served_on() {
    let machine = Machine::new();
    let image = machine.image("a.img", MIB);
    machine.create("web", &format!("disk=['{},,xvda']", image.display()));
    let mut disk = Nbd::connect(&machine.dir().join("web/xvda.nbd")).unwrap();
    for round in 1..=2 {
        let dom0 = machine.pid("Domain-0").unwrap();
        let opener = machine.opener();
        let killed = if round == 1 { opener } else { dom0 };
        kill(Pid::from_raw(killed), Signal::SIGKILL).unwrap();
        disk.send_write(0, &[round; BLOCK]).unwrap();
        disk.written().expect("the next dom0 answers it");
        eventually("both are gone", || !runs(dom0) && !runs(opener));
        assert_eq!(disk.read(0).unwrap(), [round; BLOCK]);
    }
    let log = machine.log();
    assert!(log.contains("the process that opens images has ended: signal: 9 (SIGKILL)"), "{log}");
}

/// Writes the nodes of a disk, as a toolstack that does not look at the image first.
fn offer(machine: &Machine, vdev: u32, params: &str) {
    let mut store = machine.store();
    let back = format!("/local/domain/0/backend/vbd/1/{vdev}");
    let front = format!("/local/domain/1/device/vbd/{vdev}");
    let of_back =
        [("params", params), ("mode", "w"), ("online", "1"), ("frontend-id", "1"), ("frontend", &front)];
    let of_front = [("backend-id", "0"), ("virtual-device", &vdev.to_string()), ("backend", &back)];
    for (node, keys) in [(&back, &of_back[..]), (&front, &of_front[..])] {
        for (key, value) in keys.iter().chain(&[("state", "1")]) {
            store.write(&format!("{node}/{key}"), value).unwrap();
        }
    }
}

#[test]
fn image_that_is_not_opened_is_refused_with_the_reason() {
    let machine = Machine::new();
    machine.create("web", "");
    std::os::unix::fs::symlink("/dev/null", machine.path("null")).unwrap();
    machine.file("empty.img", "");
    let own = |name: &str| machine.path(name).display().to_string();
    let refusals = [
        (own("null"), "found a character device, expected a regular file or a block device"),
        (own("empty.img"), "found 0 bytes, expected at least one sector of 512"),
        ("/proc/self/comm".into(), "found a setting of the kernel, expected a regular file"),
    ];
    for (vdev, (path, reason)) in (51712..).step_by(16).zip(refusals) {
        offer(&machine, vdev, &path);
        eventually(reason, || {
            let mut nodes = machine.nodes().into_iter();
            nodes.any(|(path, value)| path.contains("/error/") && value.contains(reason))
        });
    }
}

#[test]
fn images_elsewhere_are_refused_where_directories_are_named() {
    let directory = tempfile::tempdir().unwrap();
    let inside = directory.path().join("a.img");
    std::fs::File::create(&inside).unwrap().set_len(MIB).unwrap();
    let machine = Machine::with(&format!("images = ['{}']", directory.path().display()));
    let outside = machine.image("b.img", MIB);
    machine.create("web", &format!("disk=['{},,xvda']", inside.display()));
    let error = machine.fails(["block-attach", "web", &format!("{},,xvdb", outside.display())]);
    assert!(
        error.contains("found an image elsewhere, expected one below a directory of --images"),
        "{error}"
    );
    assert!(error.contains(outside.to_str().unwrap()), "{error}");
    // It is not kept locked.
    std::fs::File::open(&outside).unwrap().try_lock().unwrap();
}

#[test]
fn directory_of_images_that_is_absent_is_named() {
    let machine = Machine::new();
    let output =
        command(&machine.path("other")).args(["dom0", "--images", "/absent/images"]).output().unwrap();
    let errors = texts(&output).1;
    assert_eq!(output.status.code(), Some(1), "{errors}");
    assert!(errors.contains("/absent/images: finding the directory of --images: No such file"), "{errors}");
    assert!(errors.contains("the process that opens images has ended: exit status: 1"), "{errors}");
}

/// A process with a lease on a file: others wait until it is gone before they can open it.
fn lease(path: &Path) -> Guard {
    let program = "import fcntl, signal, sys\n\
        signal.signal(signal.SIGIO, signal.SIG_IGN)\n\
        file = open(sys.argv[1], 'r+')\n\
        fcntl.fcntl(file, fcntl.F_SETLEASE, fcntl.F_WRLCK)\n\
        print('leased', flush=True)\n\
        sys.stdin.read()";
    let mut python = Command::new("python3");
    python.args(["-c", program]).arg(path).stdin(Stdio::piped()).stdout(Stdio::piped());
    let mut holder = python.spawn().unwrap();
    let mut line = String::new();
    std::io::BufReader::new(holder.stdout.take().unwrap()).read_line(&mut line).unwrap();
    assert_eq!(line, "leased\n");
    Guard(holder)
}

#[test]
fn image_whose_opening_takes_long_keeps_no_other_guest_waiting() {
    let machine = Machine::new();
    let slow = machine.image("slow.img", MIB);
    let other = machine.image("other.img", MIB);
    machine.create("web", "");
    let holder = lease(&slow);
    offer(&machine, 51712, slow.to_str().unwrap());
    machine.ok(["block-attach", "web", &format!("{},,xvdb", other.display())]);
    let state = || {
        let state = machine.store().read_text("/local/domain/0/backend/vbd/1/51712/state");
        state.unwrap_or_default()
    };
    assert_eq!(state(), "1", "the lease is held");
    drop(holder);
    eventually("the image is open, and the disk waits for its frontend", || state() == "2");
}
