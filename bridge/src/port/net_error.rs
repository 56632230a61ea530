// Not a core: does I/O or calls a hypervisor.

//! The errors of operations on network interfaces, the first of which is a name that none can have.

use std::io;

use nix::errno::Errno;

/// The errors of operations on interfaces. Their texts have the system's error, which is therefore not a `source` as
/// well.
#[derive(Debug, thiserror::Error)]
pub enum NetError {
    /// Names have 1 to 15 bytes, none of them a slash, blank or colon.
    #[error("{0:?} is not a valid interface name: expected 1 to 15 bytes without '/', ':' or blanks")]
    BadName(String),
    /// No such interface, in this network namespace.
    #[error("there is no network interface {0:?} in this network namespace")]
    NoInterface(String),
    /// Not a bridge, or none at all.
    #[error(
        "there is no Linux bridge {0:?} in this network namespace; `ip link add {0} type bridge` makes one"
    )]
    NoBridge(String),
    /// The capability is missing.
    #[error("no permission to {0}: CAP_{1} is needed in this network namespace")]
    NoPermission(String, &'static str),
    /// The device node is not there, or may not be opened.
    #[error("cannot open {path}: {error} (taps need the kernel module tun)")]
    NoTun {
        /// Its path.
        path: &'static str,
        /// The system's error.
        error: io::Error,
    },
    /// A tap was to be created where an interface exists already.
    #[error("there is a network interface {0:?} already in this network namespace")]
    Exists(String),
    /// The interface exists and is in use by another program, or is no tap.
    #[error(
        "cannot take network interface {0:?} as a tap: another program has it, or it is not a tap with one queue"
    )]
    Busy(String),
    /// An interface can be in one bridge only.
    #[error(
        "network interface {0:?} is in a bridge or bond already; `ip link set {0} nomaster` takes it out"
    )]
    Enslaved(String),
    /// Another system call failed.
    #[error("cannot {what}: {error}")]
    Os {
        /// The operation.
        what: String,
        /// The system's error.
        error: io::Error,
    },
}

impl NetError {
    /// Makes the error of operation `what`, which needs this capability.
    pub(super) fn new(what: impl Into<String>, capability: &'static str, errno: Errno) -> NetError {
        match errno {
            Errno::EPERM | Errno::EACCES => NetError::NoPermission(what.into(), capability),
            _ => NetError::Os { what: what.into(), error: errno.into() },
        }
    }
}

/// Checks that an interface can have this name.
///
/// # Errors
/// [`NetError::BadName`].
pub(super) fn check_name(name: &str) -> Result<(), NetError> {
    let bad = name.is_empty() || name.len() >= libc::IFNAMSIZ || matches!(name, "." | "..");
    if bad || name.bytes().any(|byte| matches!(byte, 0 | b'/' | b':') || byte.is_ascii_whitespace()) {
        return Err(NetError::BadName(name.into()));
    }
    Ok(())
}
