//! What a process of each role cannot do any more: each forbidden thing tried from inside it, in a process of its own; and the processes of a
//! machine as the kernel describes them.

mod common;

use std::fs::{File, OpenOptions, Permissions};
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use common::Machine;
use nix::errno::Errno;
use nix::sched::{CloneFlags, unshare};
use nix::sys::ptrace;
use nix::sys::signal::kill;
use nix::sys::socket::{AddressFamily, SockFlag, SockType, socket};
use nix::unistd::Pid;
use toolstack::sandbox::{Files, Role, enter};

/// Tells the test, started once more, which role it is to try, and in which directory.
const ROLE: &str = "XPV_TEST_ROLE";
const DIR: &str = "XPV_TEST_DIR";

const ROLES: [(&str, Role); 4] = [
    ("hypervisor", Role::Hypervisor),
    ("dom0", Role::Dom0),
    ("guest", Role::Guest),
    ("opener", Role::Opener),
];

/// Pushes a byte into a terminal's input (TIOCSTI), and has a block device read its partitions again (BLKRRPART of linux/fs.h).
#[allow(unsafe_code, missing_docs)] // nix's macros make functions that are both
mod ioctl {
    nix::ioctl_write_ptr_bad!(push_input, nix::libc::TIOCSTI, u8);
    nix::ioctl_none_bad!(read_partitions, nix::request_code_none!(0x12, 95));
}

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
fn try_everything(role: Role, dir: &Path) {
    let outside = dir.parent().unwrap().join("outside");
    // As an image that another process has opened and passed on.
    let mut image = OpenOptions::new().read(true).write(true).open(&outside).unwrap();
    let listener = UnixListener::bind(dir.join("listener")).unwrap();
    let files = match role {
        Role::Dom0 => {
            let mut in_force = enter(role, dir, true).unwrap();
            UnixStream::connect(dir.join("listener")).expect("what it needs when it starts");
            in_force.refuse_connecting().unwrap();
            in_force.files
        }
        role => enter(role, dir, true).unwrap().files,
    };
    try_what_no_role_may(dir);
    if matches!(role, Role::Dom0 | Role::Opener) {
        refused("connecting", errno(UnixStream::connect(dir.join("listener"))));
        refused("a signal", kill(Pid::parent(), None));
    }
    std::thread::spawn(|| ()).join().unwrap();
    // What a static program reads randomness from, too.
    for path in ["/proc/self/stat", "/dev/urandom", "/dev/random"] {
        File::open(path).unwrap();
    }
    match role {
        Role::Opener => try_opener(&image, &outside, dir),
        _ => {
            image.write_all(b"a guest's").expect("what it was given");
            try_files(files, &outside, dir);
            // Under another name of what it was given, neither.
            let again = File::open(format!("/proc/self/fd/{}", image.as_raw_fd()));
            assert_eq!(again.is_ok(), files == Files::Any);
        }
    }
    drop(listener);
}

fn try_what_no_role_may(dir: &Path) {
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
    // Neither descriptor is what these are for: the filter refuses them before that is found.
    let null = File::open("/dev/null").unwrap().as_raw_fd();
    #[allow(unsafe_code)] // SAFETY: the byte lives as long as the call, and the other has no argument.
    let ioctls = unsafe { [ioctl::push_input(null, &b'x'), ioctl::read_partitions(null)] };
    for outcome in ioctls {
        assert_eq!(outcome.err(), Some(Errno::EPERM));
    }
}

/// What a role does with files that opens some of its own.
fn try_files(files: Files, outside: &Path, dir: &Path) {
    File::create(dir.join("file")).unwrap();
    socket(AddressFamily::Unix, SockType::Stream, SockFlag::empty(), None).unwrap();
    socket(AddressFamily::Inet, SockType::Datagram, SockFlag::empty(), None).unwrap();
    let elsewhere = [
        errno(File::open(outside)).map(drop),
        errno(OpenOptions::new().write(true).open(outside)).map(drop),
        errno(File::create(outside.with_extension("new"))).map(drop),
        errno(std::fs::remove_file(outside.with_extension("other"))),
    ];
    for (number, outcome) in elsewhere.into_iter().enumerate() {
        match files {
            // Where the kernel has no Landlock.
            Files::Any => outcome.unwrap(),
            _ => refused(&format!("outside of its directory, {number}"), outcome),
        }
    }
}

/// What the process does with files that opens them for another one: it opens any, and changes none.
fn try_opener(mut image: &File, outside: &Path, dir: &Path) {
    let mut text = String::new();
    File::open(outside).unwrap().read_to_string(&mut text).unwrap();
    OpenOptions::new().read(true).write(true).open(outside).unwrap();
    refused("writing", errno(image.write(b"x")));
    refused("writing at an offset", errno(std::os::unix::fs::FileExt::write_at(image, b"x", 0)));
    refused("another length", errno(image.set_len(1)));
    refused("other permissions", errno(image.set_permissions(Permissions::from_mode(0o777))));
    refused("truncating", errno(OpenOptions::new().write(true).truncate(true).open(outside)));
    refused("creating", errno(File::create_new(dir.join("new"))));
    refused("a directory", errno(std::fs::create_dir(dir.join("new"))));
    refused("removing", errno(std::fs::remove_file(outside)));
    refused("renaming", errno(std::fs::rename(outside, dir.join("new"))));
    refused("linking", errno(std::fs::hard_link(outside, dir.join("new"))));
    let length = std::num::NonZeroUsize::new(1).unwrap();
    let prot = nix::sys::mman::ProtFlags::PROT_READ;
    let shared = nix::sys::mman::MapFlags::MAP_SHARED;
    #[allow(unsafe_code)] // SAFETY: the mapping is at an address that the kernel chooses, and nobody uses it.
    let mapped = unsafe { nix::sys::mman::mmap(None, length, prot, shared, image.as_fd(), 0) };
    refused("mapping", mapped);
    refused("a socket", socket(AddressFamily::Unix, SockType::Stream, SockFlag::empty(), None));
}

#[test]
fn forbidden_calls_from_inside_each_role_are_refused() {
    if let Ok(role) = std::env::var(ROLE) {
        let (_, role) = ROLES.into_iter().find(|(name, _)| *name == role).unwrap();
        let dir = PathBuf::from(std::env::var_os(DIR).unwrap());
        return try_everything(role, &dir);
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
    let [dom0, guest] = ["Domain-0", "web"].map(|domain| machine.pid(domain).unwrap());
    for pid in [dom0, guest, machine.hypervisor(), machine.opener()] {
        for thread in std::fs::read_dir(format!("/proc/{pid}/task")).unwrap() {
            let status = std::fs::read_to_string(thread.unwrap().path().join("status")).unwrap();
            let value =
                |key: &str| status.lines().find_map(|line| line.strip_prefix(key)).unwrap().trim().to_owned();
            assert_eq!((value("NoNewPrivs:"), value("Seccomp:")), ("1".into(), "2".into()), "{status}");
            // Neither to load modules nor to change users: CAP_SYS_MODULE, CAP_SETUID of linux/capability.h.
            let permitted = u64::from_str_radix(&value("CapPrm:"), 16).unwrap();
            assert_eq!(permitted & (1 << 16 | 1 << 7), 0, "{status}");
            // To open others' files and to see their users: CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH, CAP_SYS_PTRACE, CAP_LEASE.
            assert!(pid != dom0 || permitted & (1 << 1 | 1 << 2 | 1 << 19 | 1 << 28) == 0, "{status}");
        }
    }
}
