//! Network namespaces, by name, process or path.

use std::fs::File;
use std::path::PathBuf;

use nix::sched::{CloneFlags, setns};

use crate::error::{Error, Result};

/// Where `ip netns` mounts namespaces.
const NAMED: &str = "/run/netns";

/// Returns the file of a namespace, which is given by its name, a process id, or a path.
pub fn path(text: &str) -> PathBuf {
    match text {
        _ if text.contains('/') => text.into(),
        _ if text.bytes().all(|b| b.is_ascii_digit()) => format!("/proc/{text}/ns/net").into(),
        _ => PathBuf::from(NAMED).join(text),
    }
}

/// Opens the file of a namespace.
///
/// # Errors
/// [`Error::File`] if it does not exist.
pub fn open(text: &str) -> Result<File> {
    let path = path(text);
    File::open(&path).map_err(|e| Error::file(path, "opening the network namespace", e))
}

/// Moves the calling thread into a namespace.
///
/// # Errors
/// [`Error::Io`] of setns(2): the thread has not the privilege, or the file is not a network namespace.
pub fn enter(namespace: &File) -> Result<()> {
    setns(namespace, CloneFlags::CLONE_NEWNET)
        .map_err(|e| Error::io("entering the network namespace (CAP_SYS_ADMIN is needed)", e))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn name_process_id_and_path_select_the_namespace_file() {
        assert_eq!(path("web"), PathBuf::from("/run/netns/web"));
        assert_eq!(path("42"), PathBuf::from("/proc/42/ns/net"));
        assert_eq!(path("/proc/self/ns/net"), PathBuf::from("/proc/self/ns/net"));
        assert!(open("no-such-ns").unwrap_err().to_string().contains("/run/netns/no-such-ns"));
    }
}
