//! Another network namespace, by name, process or path.

use std::fs::File;
use std::path::PathBuf;

use nix::sched::{CloneFlags, setns};

use crate::error::{Error, Result};

/// Where `ip netns` keeps namespaces.
const NAMED: &str = "/run/netns";

/// The file that stands for a namespace: `NAME`, a process's number, or a path.
pub fn path(text: &str) -> PathBuf {
    match text {
        _ if text.contains('/') => text.into(),
        _ if text.bytes().all(|b| b.is_ascii_digit()) => format!("/proc/{text}/ns/net").into(),
        _ => PathBuf::from(NAMED).join(text),
    }
}

/// Opens it.
///
/// # Errors
/// There is none.
pub fn open(text: &str) -> Result<File> {
    let path = path(text);
    File::open(&path).map_err(|e| Error::file(path, "opening the network namespace", e))
}

/// Moves the calling thread into it.
///
/// # Errors
/// It may not, or the file is none.
pub fn enter(namespace: &File) -> Result<()> {
    setns(namespace, CloneFlags::CLONE_NEWNET)
        .map_err(|e| Error::io("entering the network namespace (CAP_SYS_ADMIN is needed)", e))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_numbers_and_paths_are_told_apart() {
        assert_eq!(path("web"), PathBuf::from("/run/netns/web"));
        assert_eq!(path("42"), PathBuf::from("/proc/42/ns/net"));
        assert_eq!(path("/proc/self/ns/net"), PathBuf::from("/proc/self/ns/net"));
        assert!(open("no-such-ns").unwrap_err().to_string().contains("/run/netns/no-such-ns"));
    }
}
