//! The directory of one machine: its sockets, and a directory for each guest.

use std::fs;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use crate::error::{Error, Result};

/// Longest path of a socket in bytes: `sun_path` holds 108 with its NUL (unix(7)).
const SOCKET_PATH: usize = 107;
/// Bytes kept for what is below the directory: `/broker.sock`, or `/NAME/xvda.nbd` with a name of 16 bytes.
const BELOW: usize = 28;

/// Where a machine is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Dir(PathBuf);

impl Dir {
    /// The directory asked for, or else the usual one: `$XPV_DIR`, `$XDG_RUNTIME_DIR/xpv`, `/run/xpv` for root.
    ///
    /// # Errors
    /// There is none of them, or its path is too long for sockets in it.
    pub fn choose(asked: Option<&Path>) -> Result<Dir> {
        let path = match asked {
            Some(path) => path.to_owned(),
            None => {
                usual(|name| std::env::var_os(name).map(PathBuf::from), nix::unistd::geteuid().is_root())?
            }
        };
        let path = std::path::absolute(&path).map_err(|e| Error::file(&path, "finding the directory", e))?;
        let len = path.as_os_str().len();
        if len + BELOW > SOCKET_PATH {
            let most = SOCKET_PATH - BELOW;
            let what = format!("{}: the path has {len} bytes, expected at most {most}", path.display());
            return Err(Error::Other(what));
        }
        Ok(Dir(path))
    }

    /// The directory.
    pub fn path(&self) -> &Path {
        &self.0
    }

    /// The store's socket, for dom0's tools.
    pub fn store(&self) -> PathBuf {
        self.0.join("xenstored.sock")
    }

    /// Where a real host's backends keep what is in flight, for their successors.
    pub fn inflight(&self) -> PathBuf {
        self.0.join("inflight")
    }

    /// A guest's own directory.
    pub fn guest(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }

    /// The socket by which a guest's disk is exported.
    pub fn nbd(&self, guest: &str, dev: &str) -> PathBuf {
        nbd(&self.guest(guest), dev)
    }

    /// What a guest's process says.
    pub fn log(&self, guest: &str) -> PathBuf {
        self.guest(guest).join("log")
    }

    /// Makes the directory where it is missing, for its owner alone.
    ///
    /// # Errors
    /// The system's.
    pub fn make(&self) -> Result<()> {
        make(&self.0)
    }
}

/// The socket by which a disk is exported, in the directory of its guest.
pub fn nbd(directory: &Path, dev: &str) -> PathBuf {
    directory.join(format!("{dev}.nbd"))
}

/// Makes a directory, and those above it, for its owner alone.
///
/// # Errors
/// The system's.
pub fn make(path: &Path) -> Result<()> {
    let mut builder = fs::DirBuilder::new();
    builder.recursive(true).mode(0o700);
    builder.create(path).map_err(|e| Error::file(path, "making the directory", e))
}

fn usual(variable: impl Fn(&str) -> Option<PathBuf>, root: bool) -> Result<PathBuf> {
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
    fn the_usual_directory_is_where_the_manual_says() {
        let env = |pairs: &'static [(&str, &str)]| {
            move |name: &str| pairs.iter().find(|(n, _)| *n == name).map(|(_, v)| PathBuf::from(v))
        };
        let both = env(&[("XPV_DIR", "/x"), ("XDG_RUNTIME_DIR", "/run/user/1")]);
        assert_eq!(usual(both, true).unwrap(), Path::new("/x"));
        let runtime = env(&[("XDG_RUNTIME_DIR", "/run/user/1")]);
        assert_eq!(usual(runtime, false).unwrap(), Path::new("/run/user/1/xpv"));
        assert_eq!(usual(runtime, true).unwrap(), Path::new("/run/xpv"));
        assert!(usual(env(&[("XPV_DIR", "")]), false).unwrap_err().to_string().contains("--dir"));
    }

    #[test]
    fn a_path_too_long_for_sockets_is_refused() {
        let long = format!("/{}", "x".repeat(120));
        assert!(Dir::choose(Some(Path::new(&long))).unwrap_err().to_string().contains("bytes"));
        let dir = Dir::choose(Some(Path::new("/run/xpv"))).unwrap();
        assert_eq!(dir.nbd("web", "xvda"), Path::new("/run/xpv/web/xvda.nbd"));
    }
}
