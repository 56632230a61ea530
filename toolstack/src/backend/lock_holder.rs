//! Which processes hold the lock (flock) of a file, from `/proc/locks` (proc_locks(5)).

use std::fs::Metadata;
use std::os::unix::fs::MetadataExt;

use nix::sys::stat::{major, minor};

use crate::machine::process;

/// The processes that hold a lock of the file, as far as the kernel tells: none of another process namespace, and none where
/// the file system numbers devices in another way than stat(2).
pub fn lock_holders(file: &Metadata) -> Vec<u32> {
    // A file that cannot be read names no process.
    parse(&std::fs::read_to_string("/proc/locks").unwrap_or_default(), file.dev(), file.ino())
}

/// The other processes that have the file open, as far as this process may see.
pub fn openers(file: &Metadata) -> Vec<u32> {
    let own = std::process::id();
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
    numbers("/proc").into_iter().filter(|pid| *pid != own && has_open(pid)).collect()
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

/// Names a process for messages: `process 8654 (qemu-nbd)`; `None` if it has exited.
pub fn describe(pid: u32) -> Option<String> {
    Some(format!("process {pid} ({})", name(pid)?))
}

/// The name of a process's program, at most 15 bytes; `None` if it has exited.
pub fn name(pid: u32) -> Option<String> {
    Some(std::fs::read_to_string(format!("/proc/{pid}/comm")).ok()?.trim_end().to_owned())
}

/// Whether a process has exited, or is about to: it was killed, and the kernel may still complete its I/O.
pub fn is_leaving(pid: u32) -> bool {
    name(pid).is_none() || process::is_exiting(pid)
}

#[cfg(test)]
mod tests {
    use super::*;
    use nix::fcntl::{Flock, FlockArg};

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
        let file = tempfile::tempfile().unwrap();
        let metadata = file.metadata().unwrap();
        assert!(lock_holders(&metadata).is_empty());
        let _lock = Flock::lock(file, FlockArg::LockExclusive).unwrap();
        let own = std::process::id();
        assert_eq!(lock_holders(&metadata), [own]);
        assert!(!is_leaving(own) && describe(own).unwrap().starts_with(&format!("process {own} (")));
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
