//! The directory of one machine, which holds its sockets and a subdirectory for each guest.

use std::fs;
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::path::{Path, PathBuf};

use crate::error::{Error, Result};

/// Longest path of a socket in bytes: `sun_path` has 108 bytes, of which one is the NUL (unix(7)).
const MAX_SOCKET_PATH: usize = 107;
/// Bytes reserved for paths below the directory: `/broker.sock`, or `/NAME/xvda.nbd` with a name of 16 bytes.
const RESERVED: usize = 28;

/// A machine's directory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Dir(PathBuf);

impl Dir {
    /// Returns the given directory, or else the default: `$XPV_DIR`, `/run/xpv` for root, `$XDG_RUNTIME_DIR/xpv`.
    ///
    /// # Errors
    /// [`Error::Other`] if there is no default, or the path is too long for sockets below it.
    pub fn choose(given: Option<&Path>) -> Result<Dir> {
        let path = match given {
            Some(path) => path.to_owned(),
            None => default_path(
                |name| std::env::var_os(name).map(PathBuf::from),
                nix::unistd::geteuid().is_root(),
            )?,
        };
        let path = std::path::absolute(&path).map_err(|e| Error::file(&path, "finding the directory", e))?;
        let len = path.as_os_str().len();
        if len + RESERVED > MAX_SOCKET_PATH {
            let most = MAX_SOCKET_PATH - RESERVED;
            let what = format!("{}: the path has {len} bytes, expected at most {most}", path.display());
            return Err(Error::Other(what));
        }
        Ok(Dir(path))
    }

    /// The directory's path.
    pub fn path(&self) -> &Path {
        &self.0
    }

    /// The socket of the broker.
    pub fn broker(&self) -> PathBuf {
        self.0.join("broker.sock")
    }

    /// Lets processes of other users pass through the directory, which none of them can read, and connect to the broker, which asks each
    /// one who it is. Whatever else is there stays closed to them.
    ///
    /// # Errors
    /// [`Error::File`] if this process's user may not change that.
    pub fn open_to_guests(&self) -> Result<()> {
        let broker = self.broker();
        for (path, mode) in [(&self.0, 0o711), (&broker, 0o666)] {
            fs::set_permissions(path, fs::Permissions::from_mode(mode))
                .map_err(|e| Error::file(path, "opening it to guests of other users", e))?;
        }
        Ok(())
    }

    /// The socket on which the store accepts dom0's tools.
    pub fn store(&self) -> PathBuf {
        self.0.join("xenstored.sock")
    }

    /// What the store holds, for the next `xpv hypervisor` if one is killed.
    pub fn store_state(&self) -> PathBuf {
        self.0.join("store.state")
    }

    /// The socket on which dom0 answers questions about its devices.
    pub fn control(&self) -> PathBuf {
        self.0.join("control.sock")
    }

    /// Where backends on a real Xen host log requests in flight, for the next backend process.
    pub fn inflight(&self) -> PathBuf {
        self.0.join("inflight")
    }

    /// A guest's directory.
    pub fn guest(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }

    /// The NBD socket of a guest's disk.
    pub fn nbd(&self, guest: &str, dev: &str) -> PathBuf {
        nbd(&self.guest(guest), dev)
    }

    /// The log file of a guest's process.
    pub fn log(&self, guest: &str) -> PathBuf {
        self.guest(guest).join("log")
    }

    /// Creates the directory with mode 0700 unless it exists.
    pub fn make(&self) -> Result<()> {
        make(&self.0)
    }
}

/// The NBD socket of a disk, in the directory of its guest.
pub fn nbd(directory: &Path, dev: &str) -> PathBuf {
    directory.join(format!("{dev}.nbd"))
}

/// Creates a directory and its missing parents with mode 0700.
pub fn make(path: &Path) -> Result<()> {
    let mut builder = fs::DirBuilder::new();
    builder.recursive(true).mode(0o700);
    builder.create(path).map_err(|e| Error::file(path, "making the directory", e))
}

fn default_path(variable: impl Fn(&str) -> Option<PathBuf>, root: bool) -> Result<PathBuf> {
    let set = |name| variable(name).filter(|path| !path.as_os_str().is_empty());
    set("XPV_DIR")
        .or_else(|| if root { Some("/run/xpv".into()) } else { None })
        .or_else(|| set("XDG_RUNTIME_DIR").map(|dir| dir.join("xpv")))
        .ok_or_else(|| Error::other("no directory for the machine: set XPV_DIR or give --dir DIR"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn default_directory_follows_xpv_dir_then_root_then_xdg_runtime_dir() {
        let env = |pairs: &'static [(&str, &str)]| {
            move |name: &str| pairs.iter().find(|(n, _)| *n == name).map(|(_, v)| PathBuf::from(v))
        };
        let both = env(&[("XPV_DIR", "/x"), ("XDG_RUNTIME_DIR", "/run/user/1")]);
        assert_eq!(default_path(both, true).unwrap(), Path::new("/x"));
        let runtime = env(&[("XDG_RUNTIME_DIR", "/run/user/1")]);
        assert_eq!(default_path(runtime, false).unwrap(), Path::new("/run/user/1/xpv"));
        assert_eq!(default_path(runtime, true).unwrap(), Path::new("/run/xpv"));
        assert!(default_path(env(&[("XPV_DIR", "")]), false).unwrap_err().to_string().contains("--dir"));
    }

    #[test]
    fn directory_path_too_long_for_sockets_is_rejected() {
        let long = format!("/{}", "x".repeat(120));
        assert!(Dir::choose(Some(Path::new(&long))).unwrap_err().to_string().contains("bytes"));
        let dir = Dir::choose(Some(Path::new("/run/xpv"))).unwrap();
        assert_eq!(dir.nbd("web", "xvda"), Path::new("/run/xpv/web/xvda.nbd"));
    }
}
