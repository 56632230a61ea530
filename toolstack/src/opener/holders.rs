//! Which processes have an image that is in use: those that hold its lock (flock), from `/proc/locks` (proc_locks(5)), or have it open.

use std::fs::Metadata;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use nix::sys::stat::{major, minor};
use serde::{Deserialize, Serialize};

use crate::machine::process;

/// A process that has an image.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Holder {
    /// The process.
    pub pid: u32,
    /// The name of its program, at most 15 bytes; `None` if it has exited.
    pub name: Option<String>,
    /// It has exited, or is about to: it was killed, and the kernel may still complete its I/O.
    pub is_leaving: bool,
    /// It is the process that was asked to open the image, or the one that it serves.
    pub is_ours: bool,
    /// It runs the same program as those.
    pub is_of_our_kind: bool,
}

impl Holder {
    /// Names the process for messages: `process 8654 (qemu-nbd)`; `None` if it has exited.
    pub fn describe(&self) -> Option<String> {
        Some(format!("process {} ({})", self.pid, self.name.as_ref()?))
    }

    fn new(pid: u32, ours: [u32; 2]) -> Holder {
        let name = name(pid);
        let is_of_our_kind = name.is_some() && name == self::name(std::process::id());
        // One that opened images for another process ends with that.
        let is_orphan = || is_of_our_kind && process::parent(pid).is_some_and(is_leaving);
        let is_ours = ours.contains(&pid);
        let is_leaving = !is_ours && (is_leaving(pid) || is_orphan());
        Holder { pid, name, is_leaving, is_ours, is_of_our_kind }
    }
}

/// The device and inode numbers of an image, and who has it, as far as the kernel tells, for the process `server`. `but_ours`: it and this
/// process have it too, which is known.
pub(super) fn of_image(path: &Path, server: u32, but_ours: bool) -> (Option<(u64, u64)>, Vec<Holder>) {
    let Ok(file) = std::fs::metadata(path) else { return (None, Vec::new()) };
    let ours = [std::process::id(), server];
    let mut pids = lock_holders(&file);
    pids.retain(|pid| !but_ours || !ours.contains(pid));
    if pids.is_empty() {
        // The kernel does not tell whose locks of bytes are, as QEMU has them.
        pids = openers(&file, ours);
    }
    (Some((file.dev(), file.ino())), pids.into_iter().map(|pid| Holder::new(pid, ours)).collect())
}

/// The processes that hold a lock of the file, as far as the kernel tells: none of another process namespace, and none where
/// the file system numbers devices in another way than stat(2).
fn lock_holders(file: &Metadata) -> Vec<u32> {
    // A file that cannot be read names no process.
    parse(&std::fs::read_to_string("/proc/locks").unwrap_or_default(), file.dev(), file.ino())
}

/// The processes but `ours` that have the file open, as far as this process may see.
fn openers(file: &Metadata, ours: [u32; 2]) -> Vec<u32> {
    let numbers = |directory: &str| -> Vec<u32> {
        let Ok(entries) = std::fs::read_dir(directory) else { return Vec::new() };
        entries.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok()).collect()
    };
    let has_open = |pid: &u32| {
        let is_it = |fd: &u32| {
            let open = std::fs::metadata(format!("/proc/{pid}/fd/{fd}"));
            open.is_ok_and(|open| (open.dev(), open.ino()) == (file.dev(), file.ino()))
        };
        numbers(&format!("/proc/{pid}/fd")).iter().any(is_it)
    };
    numbers("/proc").into_iter().filter(|pid| !ours.contains(pid) && has_open(pid)).collect()
}

/// Parses lines such as `1: FLOCK  ADVISORY  WRITE 8654 fe:00:5497012 0 EOF`. A process that waits for a lock has `->` behind
/// the number.
fn parse(locks: &str, device: u64, inode: u64) -> Vec<u32> {
    let file = format!("{:02x}:{:02x}:{inode}", major(device), minor(device));
    let holder = |line: &str| {
        let fields: Vec<&str> = line.split_ascii_whitespace().collect();
        match fields[..] {
            [_, "FLOCK", _, _, pid, of, ..] if of == file => pid.parse().ok(),
            _ => None,
        }
    };
    locks.lines().filter_map(holder).collect()
}

/// The name of a process's program, at most 15 bytes; `None` if it has exited.
pub(super) fn name(pid: u32) -> Option<String> {
    Some(std::fs::read_to_string(format!("/proc/{pid}/comm")).ok()?.trim_end().to_owned())
}

/// Whether a process has exited, or is about to: it was killed, and the kernel may still complete its I/O.
fn is_leaving(pid: u32) -> bool {
    name(pid).is_none() || process::is_exiting(pid)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_processes_that_hold_the_files_lock_are_found() {
        let locks = "1: FLOCK  ADVISORY  WRITE 8654 fe:00:5497012 0 EOF\n\
            1: -> FLOCK  ADVISORY  WRITE 8655 fe:00:5497012 0 EOF\n\
            2: FLOCK  ADVISORY  READ 7 fe:00:54970 0 EOF\n\
            3: POSIX  ADVISORY  WRITE 8 fe:00:5497012 0 EOF\n\
            4: FLOCK  ADVISORY  READ -1 fe:00:5497012 0 EOF\n";
        assert_eq!(parse(locks, nix::sys::stat::makedev(0xfe, 0), 5_497_012), [8654]);
    }

    #[test]
    fn lock_of_this_process_is_found_while_it_is_held() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let of_image = || of_image(file.path(), 1, false).1;
        assert!(of_image().is_empty());
        file.as_file().lock().unwrap();
        let found = of_image();
        let [holder] = &found[..] else { panic!("{found:?}") };
        let own = std::process::id();
        assert_eq!((holder.pid, holder.is_ours, holder.is_of_our_kind), (own, true, true));
        assert!(!holder.is_leaving && holder.describe().unwrap().starts_with(&format!("process {own} (")));
    }

    #[test]
    fn killed_process_is_leaving() {
        let mut child =
            std::process::Command::new("cat").stdin(std::process::Stdio::piped()).spawn().unwrap();
        child.kill().unwrap();
        assert!(is_leaving(child.id()));
        child.wait().unwrap();
        assert!(is_leaving(child.id()));
    }
}
