// Not a core: does I/O or calls a hypervisor.

//! Who uses an image in this domain without a lock: a mount, the device mapper, a loop device, a process that writes to it. Xen's
//! `block` script looks for the same before it attaches a device, unless a `script=` takes its place.
#![allow(unsafe_code)] // fcntl(2) with F_SETLEASE

use nix::sys::stat::{major, minor};
use std::fs::{File, Metadata};
use std::os::fd::AsRawFd;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

/// Names the signal that tells of a file's leases (asm-generic/fcntl.h).
const F_SETSIG: libc::c_int = 10;

/// The device number of a block device.
pub(super) type DeviceNumber = (u64, u64);

/// The device number of a block device's node.
pub(super) fn number(meta: &Metadata) -> DeviceNumber {
    (major(meta.rdev()), minor(meta.rdev()))
}

/// What uses a block device: where it is mounted, or what holds it. `read_only`: mounts that write nothing are none.
pub(super) fn user_of_device(device: DeviceNumber, read_only: bool) -> Option<String> {
    let (major, minor) = device;
    let mounts = std::fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    let (mounted, writes) = mount(&mounts, device).unzip();
    if let Some(on) = mounted.filter(|_| writes == Some(true) || !read_only) {
        return Some(format!("mounted on {on}"));
    }
    let holders = names(format!("/sys/dev/block/{major}:{minor}/holders"));
    if !holders.is_empty() {
        return Some(format!("held by {}", holders.join(", ")));
    }
    // A partition of a disk, and the disk of a partition, are used with it.
    let parts = names(format!("/sys/dev/block/{major}:{minor}"));
    parts.iter().find_map(|part| {
        let number = std::fs::read_to_string(format!("/sys/dev/block/{major}:{minor}/{part}/dev")).ok()?;
        let (part_major, part_minor) = number.trim_end().split_once(':')?;
        let part_number = (part_major.parse().ok()?, part_minor.parse().ok()?);
        user_of_device(part_number, read_only).map(|user| format!("{part} is {user}"))
    })
}

/// Where a device is mounted, and whether it is written to there, from mountinfo (proc_pid_mountinfo(5)).
fn mount(mountinfo: &str, (major, minor): DeviceNumber) -> Option<(String, bool)> {
    let number = format!("{major}:{minor}");
    let of_device = |line: &&str| line.split(' ').nth(2) == Some(number.as_str());
    let mounts: Vec<&str> = mountinfo.lines().filter(of_device).collect();
    let on = mounts.first()?.split(' ').nth(4)?.to_owned();
    // The superblock's options are the last field; a mount of it may be read-only all the same.
    let writes =
        |line: &&str| line.rsplit(' ').next().is_some_and(|options| options.split(',').any(|o| o == "rw"));
    Some((on, mounts.iter().any(writes)))
}

/// The names in a directory of sysfs; none if it does not exist.
fn names(directory: impl AsRef<Path>) -> Vec<String> {
    let Ok(entries) = std::fs::read_dir(directory) else { return Vec::new() };
    entries.filter_map(|entry| entry.ok()?.file_name().into_string().ok()).collect()
}

/// The loop device whose file this is, but for the device `own`, and what uses that.
pub(super) fn loop_device_of(file: &Metadata, own: Option<DeviceNumber>) -> Option<String> {
    let device = names("/sys/block").into_iter().find(|name| {
        let is_its = || std::fs::metadata(backing_file(name)?).ok().filter(|backing| is_same(backing, file));
        name.starts_with("loop") && is_its().is_some() && (own.is_none() || device_number(name) != own)
    })?;
    let user = device_number(&device).and_then(|number| user_of_device(number, false));
    Some(match user {
        Some(user) => format!("loop device /dev/{device}, {user}"),
        None => format!("loop device /dev/{device}"),
    })
}

/// The file of a loop device; `None` if the device is none.
pub(super) fn file_of_loop_device(device: DeviceNumber) -> Option<PathBuf> {
    let link = std::fs::read_link(format!("/sys/dev/block/{}:{}", device.0, device.1)).ok()?;
    backing_file(link.file_name()?.to_str()?)
}

fn backing_file(name: &str) -> Option<PathBuf> {
    let path = std::fs::read_to_string(format!("/sys/block/{name}/loop/backing_file")).ok()?;
    Some(path.trim_end_matches('\n').into())
}

fn device_number(name: &str) -> Option<DeviceNumber> {
    let number = std::fs::read_to_string(format!("/sys/block/{name}/dev")).ok()?;
    let (major, minor) = number.trim_end().split_once(':')?;
    Some((major.parse().ok()?, minor.parse().ok()?))
}

fn is_same(one: &Metadata, other: &Metadata) -> bool {
    (one.dev(), one.ino()) == (other.dev(), other.ino())
}

/// Whether anybody has a file open for writing. Where the kernel does not tell, nobody has.
pub(super) fn has_writers(path: &Path) -> bool {
    let Ok(file) = File::open(path) else { return false };
    // A lease is refused while the file is open for writing; whoever opens it then waits until the lease is given up, and the
    // kernel signals that to its holder: by SIGIO, which would end the process, or by the signal named here, which is ignored.
    // SAFETY: the calls have no memory of ours for an argument.
    let leased = unsafe {
        libc::fcntl(file.as_raw_fd(), F_SETSIG, libc::SIGURG);
        libc::fcntl(file.as_raw_fd(), libc::F_SETLEASE, libc::F_RDLCK)
    };
    let is_refused = leased < 0 && std::io::Error::last_os_error().raw_os_error() == Some(libc::EAGAIN);
    // Closing the file is not enough: a child that has not executed its program yet has the same open file.
    // SAFETY: as above.
    unsafe { libc::fcntl(file.as_raw_fd(), libc::F_SETLEASE, libc::F_UNLCK) };
    is_refused
}

/// Another process that has a file open for writing, as far as this process may see. `server` is one whose open files do not count
/// either.
pub(super) fn writer(file: &Metadata, server: Option<u32>) -> Option<String> {
    let ours = [Some(std::process::id()), server].map(|pid| pid.map(|pid| pid.to_string()));
    let is_ours = |name: &String| ours.iter().flatten().any(|pid| pid == name);
    let is_pid = |name: &String| name.bytes().all(|b| b.is_ascii_digit()) && !is_ours(name);
    let pid = names("/proc").into_iter().filter(is_pid).find(|pid| {
        // Asked before its descriptors are read, as its program may start in between.
        let before_exec = is_before_exec(pid);
        let of_process = names(format!("/proc/{pid}/fd"));
        of_process.iter().any(|fd| is_written(pid, fd, file, before_exec))
    })?;
    let name = std::fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
    Some(format!("process {pid} ({}), which has it open for writing", name.trim_end()))
}

/// Whether a descriptor of a process writes to a file; if it is `before_exec`, one that stays open then.
fn is_written(pid: &str, fd: &str, file: &Metadata, before_exec: bool) -> bool {
    let open = std::fs::metadata(format!("/proc/{pid}/fd/{fd}"));
    if !open.is_ok_and(|open| is_same(&open, file)) {
        return false;
    }
    let info = std::fs::read_to_string(format!("/proc/{pid}/fdinfo/{fd}")).unwrap_or_default();
    let flags = info.lines().find_map(|line| line.strip_prefix("flags:"));
    let flags = flags.and_then(|flags| i32::from_str_radix(flags.trim(), 8).ok());
    let stays = |flags: i32| !before_exec || flags & libc::O_CLOEXEC == 0;
    flags.is_some_and(|flags| flags & libc::O_ACCMODE != libc::O_RDONLY && stays(flags))
}

/// Whether a process is a child of this one that has not executed its program yet: until then it has copies of this process's
/// descriptors.
fn is_before_exec(pid: &str) -> bool {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let parent = status.lines().find_map(|line| line.strip_prefix("PPid:"));
    let program = |of: &str| std::fs::read_link(format!("/proc/{of}/exe")).ok();
    parent.is_some_and(|parent| parent.trim() == std::process::id().to_string())
        && program(pid) == program("self")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mount_is_found_by_the_devices_number_and_writes_if_its_superblock_does() {
        let mounts = "22 1 8:1 / / rw,relatime shared:1 - ext4 /dev/sda1 rw,errors=remount-ro\n\
            30 22 7:0 / /mnt/a\\040b ro,relatime shared:2 - iso9660 /dev/loop0 ro\n\
            31 22 7:1 / /mnt/c ro - ext4 /dev/loop1 rw\n";
        assert_eq!(mount(mounts, (8, 1)), Some(("/".into(), true)));
        assert_eq!(mount(mounts, (7, 0)), Some(("/mnt/a\\040b".into(), false)));
        assert_eq!(mount(mounts, (7, 1)), Some(("/mnt/c".into(), true)));
        assert_eq!(mount(mounts, (7, 11)), None);
    }

    #[test]
    fn whoever_opens_a_file_in_the_middle_of_the_question_disturbs_nobody() {
        let path = tempfile::NamedTempFile::new().unwrap().into_temp_path();
        let open = || std::fs::OpenOptions::new().write(true).open(&path).map(drop);
        std::thread::scope(|threads| {
            let opener = threads.spawn(|| (0..20_000).for_each(|_| open().unwrap()));
            while !opener.is_finished() {
                has_writers(&path);
            }
        });
        assert!(!has_writers(&path));
    }

    #[test]
    fn process_that_has_a_file_open_for_writing_is_found_and_one_that_reads_is_not() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let path = file.into_temp_path();
        let meta = std::fs::metadata(&path).unwrap();
        let run = |redirection: &str| {
            let mut command = std::process::Command::new("sh");
            command.arg("-c").arg(format!("exec cat {redirection} \"$0\"")).arg(&path);
            let mut child = command.stdin(std::process::Stdio::piped()).spawn().unwrap();
            let cat = |child: &std::process::Child| {
                let comm = std::fs::read_to_string(format!("/proc/{}/comm", child.id()));
                comm.is_ok_and(|comm| comm == "cat\n")
            };
            while !cat(&child) {
                std::thread::yield_now();
            }
            let found = (has_writers(&path), writer(&meta, None), writer(&meta, Some(child.id())));
            drop(child.stdin.take());
            child.wait().unwrap();
            found
        };
        let own = std::fs::OpenOptions::new().write(true).open(&path).unwrap();
        // SAFETY: the child calls nothing but what a child of several threads may.
        let child = unsafe { libc::fork() };
        if child == 0 {
            loop {
                // SAFETY: as above.
                unsafe { libc::pause() };
            }
        }
        let of_child = writer(&meta, None);
        // SAFETY: the calls have no memory of ours for an argument.
        unsafe { (libc::kill(child, libc::SIGKILL), libc::waitpid(child, std::ptr::null_mut(), 0)) };
        assert_eq!(of_child, None, "it has what is closed before it executes a program");
        drop(own);
        let (any, writer, but_for_the_server) = run("- 3>>");
        assert!(any && writer.unwrap().contains("(cat), which has it open for writing"));
        assert_eq!(but_for_the_server, None, "what serves the disk for this process");
        assert_eq!(run("- 3<"), (false, None, None));
    }
}
