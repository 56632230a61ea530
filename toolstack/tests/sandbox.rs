//! What a process of each role cannot do any more: each forbidden thing tried from inside it, in a process of its own; and the processes of a
//! machine as the kernel describes them.

mod common;

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use common::Machine;
use nix::errno::Errno;
use nix::sched::{CloneFlags, unshare};
use nix::sys::ptrace;
use nix::sys::socket::{AddressFamily, SockFlag, SockType, socket};
use nix::unistd::Pid;
use toolstack::sandbox::{Files, Role, enter};

/// Tells the test, started once more, which role it is to try, and in which directory.
const ROLE: &str = "XPV_TEST_ROLE";
const DIR: &str = "XPV_TEST_DIR";

const ROLES: [(&str, Role); 3] =
    [("hypervisor", Role::Hypervisor), ("dom0", Role::Dom0), ("guest", Role::Guest)];

fn is_root() -> bool {
    nix::unistd::geteuid().is_root()
}

fn refused<T>(what: &str, outcome: Result<T, Errno>) {
    let errno = outcome.err();
    assert!(matches!(errno, Some(Errno::EPERM | Errno::EACCES)), "{what}: {errno:?}");
}

fn errno<T>(outcome: io::Result<T>) -> Result<T, Errno> {
    outcome.map_err(|e| Errno::from_raw(e.raw_os_error().unwrap_or(0)))
}

/// Tries what no role may do, and what only some may.
fn try_everything(files: Files, dir: &Path) {
    let outside = dir.parent().unwrap().join("outside");
    refused("exec", Err::<(), _>(errno::<()>(Err(Command::new("/bin/true").exec())).unwrap_err()));
    refused("spawn", errno(Command::new("/bin/true").spawn()));
    refused("ptrace", ptrace::attach(Pid::parent()));
    refused("TCP", socket(AddressFamily::Inet, SockType::Stream, SockFlag::empty(), None));
    refused("TCP over IPv6", socket(AddressFamily::Inet6, SockType::Stream, SockFlag::empty(), None));
    refused("Bluetooth", socket(AddressFamily::Bluetooth, SockType::Raw, SockFlag::empty(), None));
    for flag in [CloneFlags::CLONE_NEWUSER, CloneFlags::CLONE_NEWNET, CloneFlags::CLONE_NEWNS] {
        refused("a namespace", unshare(flag));
    }
    let flags = nix::mount::MsFlags::empty();
    refused("mount", nix::mount::mount(Some("none"), dir, Some("tmpfs"), flags, None::<&str>));
    refused("the host's name", nix::unistd::sethostname("other"));
    if is_root() {
        // Needs a capability that no role keeps.
        refused(
            "a device node",
            nix::sys::stat::mknod(
                &dir.join("node"),
                nix::sys::stat::SFlag::S_IFBLK,
                nix::sys::stat::Mode::empty(),
                7,
            ),
        );
        refused("another owner", nix::unistd::chown(dir, Some(nix::unistd::Uid::from_raw(1)), None));
    }
    // What it needs.
    std::thread::spawn(|| ()).join().unwrap();
    File::create(dir.join("file")).unwrap();
    File::open("/proc/self/stat").unwrap();
    socket(AddressFamily::Unix, SockType::Stream, SockFlag::empty(), None).unwrap();
    socket(AddressFamily::Inet, SockType::Datagram, SockFlag::empty(), None).unwrap();
    let elsewhere = [
        errno(File::open(&outside)).map(drop),
        errno(OpenOptions::new().write(true).open(&outside)).map(drop),
        errno(File::create(outside.with_extension("new"))).map(drop),
        errno(std::fs::remove_file(outside.with_extension("other"))),
    ];
    for (number, outcome) in elsewhere.into_iter().enumerate() {
        match files {
            // dom0, which opens images anywhere, and where the kernel has no Landlock.
            Files::Any => outcome.unwrap(),
            _ => refused(&format!("outside of its directory, {number}"), outcome),
        }
    }
}

#[test]
fn forbidden_calls_from_inside_each_role_are_refused() {
    if let Ok(role) = std::env::var(ROLE) {
        let (_, role) = ROLES.into_iter().find(|(name, _)| *name == role).unwrap();
        let dir = PathBuf::from(std::env::var_os(DIR).unwrap());
        return try_everything(enter(role, &dir, true).unwrap().files, &dir);
    }
    for (name, _) in ROLES {
        let directory = tempfile::tempdir().unwrap();
        let dir = directory.path().join("machine");
        std::fs::create_dir(&dir).unwrap();
        for file in ["outside", "outside.other"] {
            std::fs::write(directory.path().join(file), "").unwrap();
        }
        let mut command = Command::new(std::env::current_exe().unwrap());
        command.args(["--exact", "forbidden_calls_from_inside_each_role_are_refused", "--nocapture"]);
        let output = command.env(ROLE, name).env(DIR, &dir).output().unwrap();
        let (out, err) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
        assert!(output.status.success(), "{name}: {out}{err}");
    }
}

#[test]
fn every_process_of_a_machine_has_given_up_its_privileges() {
    let machine = Machine::new();
    machine.create("web", "");
    let pids = ["Domain-0", "web"].map(|domain| machine.pid(domain).unwrap());
    for pid in pids.into_iter().chain([machine.hypervisor()]) {
        for thread in std::fs::read_dir(format!("/proc/{pid}/task")).unwrap() {
            let status = std::fs::read_to_string(thread.unwrap().path().join("status")).unwrap();
            let value =
                |key: &str| status.lines().find_map(|line| line.strip_prefix(key)).unwrap().trim().to_owned();
            assert_eq!((value("NoNewPrivs:"), value("Seccomp:")), ("1".into(), "2".into()), "{status}");
            // Neither to load modules nor to change users: CAP_SYS_MODULE, CAP_SETUID of linux/capability.h.
            let permitted = u64::from_str_radix(&value("CapPrm:"), 16).unwrap();
            assert_eq!(permitted & (1 << 16 | 1 << 7), 0, "{status}");
        }
    }
}
