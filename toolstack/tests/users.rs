//! A guest with a user of its own (`uid=`): its process has that user and no more than taps need, and neither that user's processes nor
//! any other but them can be another domain, or reach what it has. Needs root.
#![allow(unsafe_code)] // A thread that becomes another user.

mod common;

use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::Path;

use common::{Machine, eventually};
use hypervisor::local::{Control, Domain};
use nix::errno::Errno;
use nix::libc;
use nix::sys::ptrace;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use ring_abi::DomId;
use testkit::nbd::{BLOCK, Nbd};

const MIB: u64 = 1 << 20;
/// Users that this host has nothing of.
const USER: u32 = 471_100;
const OTHER: u32 = 471_200;

/// Whether the node of taps is everybody's, as udev makes it, and not root's alone, as in some containers.
fn users_may_make_taps() -> bool {
    let open = std::fs::metadata("/dev/net/tun").is_ok_and(|node| node.mode() & 0o6 == 0o6);
    if !open {
        eprintln!("without a vif: /dev/net/tun is not open to all users");
    }
    open
}

/// A machine with a guest of [`USER`], which has a disk and a tap, and one of [`OTHER`]; `None` for another user than root, who starts none of others.
fn two_users(tap: &str) -> Option<Machine> {
    if !nix::unistd::geteuid().is_root() {
        eprintln!("skipped: only root starts processes of other users");
        return None;
    }
    let machine = Machine::new();
    std::fs::set_permissions(machine.path(""), std::fs::Permissions::from_mode(0o711)).unwrap();
    let image = machine.image("a.img", MIB);
    let vif = if users_may_make_taps() { format!("vif=['vifname={tap}']") } else { String::new() };
    let devices = format!("disk=['{},,xvda']\n{vif}", image.display());
    machine.create("web", &format!("uid={USER}\n{devices}"));
    machine.create("mail", &format!("uid={OTHER}"));
    Some(machine)
}

/// Calls a function as a user, in a thread that has no group and no capability.
fn as_user<T: Send>(uid: u32, act: impl FnOnce() -> T + Send) -> T {
    let become_user_and_act = || {
        // SAFETY: the calls have no memory of ours for an argument. They change this thread alone, which ends.
        unsafe {
            assert_eq!(libc::syscall(libc::SYS_setgroups, 0, std::ptr::null::<libc::gid_t>()), 0);
            assert_eq!(libc::syscall(libc::SYS_setresgid, uid, uid, uid), 0);
            assert_eq!(libc::syscall(libc::SYS_setresuid, uid, uid, uid), 0);
        }
        act()
    };
    std::thread::scope(|scope| scope.spawn(become_user_and_act).join().unwrap())
}

/// The numbers in a line of a process's status.
fn status(pid: i32, key: &str) -> Vec<u64> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix(key)).unwrap().to_owned();
    let radix = if key.starts_with("Cap") { 16 } else { 10 };
    line.split_ascii_whitespace().map(|word| u64::from_str_radix(word, radix).unwrap()).collect()
}

#[test]
fn guest_of_a_user_is_served_and_its_process_has_that_user() {
    let Some(machine) = two_users("xpv-uid0") else { return };
    let pid = machine.pid("web").unwrap();
    assert_eq!(status(pid, "Uid:"), [u64::from(USER); 4]);
    assert!(status(pid, "Groups:").is_empty());
    // CAP_NET_ADMIN and CAP_IPC_LOCK of linux/capability.h at most.
    for key in ["CapPrm:", "CapBnd:", "CapAmb:"] {
        assert_eq!(status(pid, key)[0] & !(1 << 12 | 1 << 14), 0, "{key}");
    }
    assert_eq!(std::fs::metadata(machine.dir().join("web")).unwrap().uid(), USER);
    let mut disk = Nbd::connect(&machine.dir().join("web/xvda.nbd")).unwrap();
    disk.send_write(0, &[7; BLOCK]).unwrap();
    disk.written().unwrap();
    assert_eq!(disk.read(0).unwrap(), [7; BLOCK]);
    assert_eq!(nix::net::if_::if_nametoindex("xpv-uid0").is_ok(), users_may_make_taps(), "its tap");
    drop(disk);
    kill(Pid::from_raw(pid), Signal::SIGKILL).unwrap();
    eventually("it is gone", || !machine.ok(["list"]).contains("web"));
    machine.ok(["destroy", "mail"]);
    assert!(!machine.dir().join("mail").exists());
}

#[test]
fn processes_of_a_user_are_no_other_domain_and_reach_nothing_of_it() {
    let Some(machine) = two_users("xpv-uid1") else { return };
    let dir = machine.dir();
    let mail = machine.pid("mail").unwrap();
    let join = |domid| Domain::join(&dir, DomId(domid)).map(drop).unwrap_err().to_string();
    let denied = |who: u32, domid: u16| format!("user {who} may not join as domain {domid}");
    assert!(join(2).contains(&denied(0, 2)), "root, neither: {}", join(2));
    as_user(USER, || {
        for domid in [0, 2] {
            assert!(join(domid).contains(&denied(USER, domid)), "{}", join(domid));
        }
        let error = join(1);
        assert!(!error.contains("may not join"), "its own domain has a process: {error}");
        let error = Control::connect(&dir).map(drop).unwrap_err().to_string();
        assert!(error.contains(&format!("user {USER} may not control domains")), "{error}");
        let refused = |path: &Path| assert!(std::fs::read_dir(path).is_err(), "{}", path.display());
        refused(&dir);
        refused(&dir.join("mail"));
        for file in ["create.lock", "broker.lock", "control.lock", "mail/log"] {
            assert!(std::fs::File::open(dir.join(file)).is_err(), "{file}");
        }
        for socket in ["xenstored.sock", "control.sock"] {
            assert!(std::os::unix::net::UnixStream::connect(dir.join(socket)).is_err(), "{socket}");
        }
        assert_eq!(kill(Pid::from_raw(mail), None), Err(Errno::EPERM));
        assert_eq!(ptrace::attach(Pid::from_raw(mail)), Err(Errno::EPERM));
    });
}
