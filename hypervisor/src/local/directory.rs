//! The broker's directory: one broker has it at a time, and nobody else can replace what is in it.

use super::{peer_process, socket};
use crate::{Error, Result};
use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg};
use nix::sys::socket::{Backlog, SockFlag, UnixAddr, bind, listen};
use nix::unistd::Uid;
use std::fs::{self, File, Permissions};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::Path;

/// The socket's name in the broker's directory.
pub(super) const SOCKET: &str = "broker.sock";
/// Its name until it is listened on.
const NEW_SOCKET: &str = "broker.new";
const LOCK: &str = "broker.lock";

/// Locks the directory: the holder of the lock is the broker there, so any socket found there is stale.
pub(super) fn lock(dir: &Path, everyone: bool) -> Result<Flock<File>> {
    let what = |what: &str| format!("{what} {}", dir.display());
    let mode = if everyone { 0o755 } else { 0o700 };
    fs::DirBuilder::new().recursive(true).mode(mode).create(dir).map_err(|e| Error::io(what("create"), e))?;
    check_owner(dir)?;
    let file = File::options()
        .create(true)
        .truncate(false)
        .write(true)
        // A user who could open it could hold it.
        .mode(0o600)
        .open(dir.join(LOCK))
        .map_err(|e| Error::io(what("lock"), e))?;
    Flock::lock(file, FlockArg::LockExclusiveNonblock).map_err(|(_, errno)| match errno {
        Errno::EWOULDBLOCK => Error::Denied(what("another broker runs in")),
        errno => Error::io(what("lock"), errno),
    })
}

/// Refuses a directory in which another user could replace the socket.
fn check_owner(dir: &Path) -> Result<()> {
    let found = fs::metadata(dir).map_err(|e| Error::io(format!("stat {}", dir.display()), e))?;
    let own = Uid::effective().as_raw();
    if found.uid() != own && found.uid() != 0 {
        let what = format!("{} belongs to user {}, expected {own} or root", dir.display(), found.uid());
        return Err(Error::Denied(what));
    }
    let writable = found.mode() & 0o022;
    if writable != 0 {
        let what = format!("{} is writable by other users (mode {:o})", dir.display(), found.mode() & 0o7777);
        return Err(Error::Denied(what));
    }
    Ok(())
}

/// Listens in the directory, which is locked.
pub(super) fn bind_socket(dir: &Path, everyone: bool) -> Result<OwnedFd> {
    let what = || format!("listen at {}", dir.join(SOCKET).display());
    // A socket of a broker that was killed is replaced at once: to its members one that is missing means that it was stopped.
    let path = dir.join(NEW_SOCKET);
    let _ = fs::remove_file(&path);
    let fd = socket::new(SockFlag::SOCK_NONBLOCK)?;
    let address = UnixAddr::new(&path).map_err(|e| Error::io(what(), e))?;
    bind(fd.as_raw_fd(), &address).map_err(|e| Error::io(what(), e))?;
    let mode = if everyone { 0o666 } else { 0o600 };
    fs::set_permissions(&path, Permissions::from_mode(mode)).map_err(|e| Error::io(what(), e))?;
    // Connections inherit it.
    peer_process::permit_descriptors(&fd, false);
    Backlog::new(128).and_then(|b| listen(&fd, b)).map_err(|e| Error::io(what(), e))?;
    fs::rename(&path, dir.join(SOCKET)).map_err(|e| Error::io(what(), e))?;
    Ok(fd)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn directory_that_others_can_change_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let locked = || lock(dir.path(), false).map(drop);
        locked().unwrap();
        fs::set_permissions(dir.path(), Permissions::from_mode(0o777)).unwrap();
        assert!(matches!(locked(), Err(Error::Denied(why)) if why.contains("writable")));
        fs::set_permissions(dir.path(), Permissions::from_mode(0o755)).unwrap();
        locked().unwrap();
        // Only root may give it away.
        if std::os::unix::fs::chown(dir.path(), Some(4711), None).is_ok() {
            assert!(matches!(locked(), Err(Error::Denied(why)) if why.contains("belongs to user 4711")));
        }
    }
}
