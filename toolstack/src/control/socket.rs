//! Binds the control socket so that it has its mode from the start, and never replaces that of a running dom0.

use std::fs::{self, File};
use std::os::fd::AsRawFd;
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::net::UnixListener;
use std::path::PathBuf;

use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg};
use nix::sys::socket::{AddressFamily, Backlog, SockFlag, SockType, UnixAddr, bind, listen, socket};
use nix::sys::stat::{Mode, fchmod};

use crate::dir::Dir;
use crate::error::{Error, Result};

/// Connections that wait to be accepted.
const BACKLOG: i32 = 128;

/// The control socket of this process. Dropping it removes the socket's file.
pub struct ControlSocket {
    /// The socket, which does not block.
    pub listener: UnixListener,
    path: PathBuf,
    /// Its holder is the dom0 that serves the socket: a file without a holder is a dead one's.
    _lock: Flock<File>,
}

impl ControlSocket {
    /// Binds the socket of a machine, in place of that of a dom0 that was killed.
    ///
    /// # Errors
    /// [`Error::Other`] if another dom0 serves it; [`Error::File`] if it cannot be bound.
    pub fn bind(dir: &Dir) -> Result<ControlSocket> {
        dir.make()?;
        let path = dir.control();
        let lock = lock(&path)?;
        // Bound under another name: whoever finds a socket by its name finds one that accepts connections.
        let new = path.with_extension("sock.new");
        let failed = |errno: Errno| Error::file(&path, "listening", errno);
        let _ = fs::remove_file(&new);
        let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
        let fd = socket(AddressFamily::Unix, SockType::Stream, flags, None).map_err(failed)?;
        // A socket's file gets the mode of the socket, less the umask: it is never open to others.
        fchmod(&fd, Mode::S_IRUSR | Mode::S_IWUSR).map_err(failed)?;
        bind(fd.as_raw_fd(), &UnixAddr::new(&new).map_err(failed)?).map_err(failed)?;
        Backlog::new(BACKLOG).and_then(|backlog| listen(&fd, backlog)).map_err(failed)?;
        fs::rename(&new, &path).map_err(|e| Error::file(&path, "listening", e))?;
        Ok(ControlSocket { listener: fd.into(), path, _lock: lock })
    }
}

impl Drop for ControlSocket {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.path);
    }
}

fn lock(socket: &std::path::Path) -> Result<Flock<File>> {
    let path = socket.with_extension("lock");
    let file = File::options().create(true).truncate(false).write(true).mode(0o600).open(&path);
    let file = file.map_err(|e| Error::file(&path, "opening the lock", e))?;
    Flock::lock(file, FlockArg::LockExclusiveNonblock).map_err(|(_, errno)| match errno {
        Errno::EWOULDBLOCK => Error::Other(format!("{}: another xpv dom0 serves it", socket.display())),
        errno => Error::file(&path, "locking", errno),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;
    use std::os::unix::net::UnixStream;

    fn directory() -> (tempfile::TempDir, Dir) {
        let directory = tempfile::tempdir().unwrap();
        let dir = Dir::choose(Some(&directory.path().join("run"))).unwrap();
        (directory, dir)
    }

    #[test]
    fn socket_replaces_a_dead_one_and_not_a_living_one() {
        let (_directory, dir) = directory();
        dir.make().unwrap();
        drop(UnixListener::bind(dir.control()).unwrap());
        assert!(UnixStream::connect(dir.control()).is_err(), "a dead one");
        let socket = ControlSocket::bind(&dir).unwrap();
        UnixStream::connect(dir.control()).unwrap();
        let error = ControlSocket::bind(&dir).err().unwrap().to_string();
        assert!(error.ends_with("control.sock: another xpv dom0 serves it"), "{error}");
        UnixStream::connect(dir.control()).unwrap();
        drop(socket);
        assert!(!dir.control().exists());
        ControlSocket::bind(&dir).unwrap();
    }

    #[test]
    fn socket_is_open_to_its_user_alone() {
        let (_directory, dir) = directory();
        let _socket = ControlSocket::bind(&dir).unwrap();
        let mode = |path: PathBuf| fs::metadata(path).unwrap().permissions().mode() & 0o777;
        assert_eq!(mode(dir.control()), 0o600);
        assert_eq!(mode(dir.control().with_extension("lock")), 0o600);
        let names: Vec<_> =
            fs::read_dir(dir.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        assert_eq!(names.len(), 2, "{names:?}");
    }
}
