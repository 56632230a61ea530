//! Why a hypervisor call fails, and whose fault it is.

use ring_abi::grant::Status;
use ring_abi::{DomId, EventPort, GrantRef};
use std::io;

/// The result of a hypervisor call.
pub type Result<T> = std::result::Result<T, Error>;

/// Why a hypervisor call failed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A grant operation was refused.
    #[error("grant {gref} of domain {peer}: {status}")]
    Grant {
        /// The granting domain.
        peer: DomId,
        /// The reference.
        gref: GrantRef,
        /// Why; never [`Status::OKAY`].
        status: Status,
    },
    /// The domain has no more pages, references or ports.
    #[error("no space left: {0}")]
    NoSpace(&'static str),
    /// The peer domain does not exist, or has exited.
    #[error("domain {0} does not exist")]
    NoSuchDomain(DomId),
    /// The peer has no unbound port of this number for this domain.
    #[error("domain {peer} has no unbound event channel {port} for this domain")]
    NoSuchPort {
        /// The peer.
        peer: DomId,
        /// The requested port.
        port: EventPort,
    },
    /// The other end of an event channel, or of the connection to the broker or store, is closed.
    #[error("the other end is closed")]
    Closed,
    /// The broker was killed, or is taking over from one that was: the same call may succeed in a moment.
    #[error("the broker is being restarted")]
    Away,
    /// This process has no permission.
    #[error("not permitted: {0}")]
    Denied(String),
    /// The peer, the broker or the store violated its protocol.
    #[error("protocol error: {0}")]
    Protocol(String),
    /// A system call failed. `Display` includes the cause; there is no `source`, so that a printed chain of causes
    /// names it once.
    #[error("{what}: {error}")]
    Io {
        /// The operation, and what it was for.
        what: String,
        /// The cause.
        error: io::Error,
    },
}

impl Error {
    /// Wraps a system error with the operation that failed.
    pub fn io(what: impl Into<String>, error: impl Into<io::Error>) -> Self {
        Self::Io { what: what.into(), error: error.into() }
    }
}

impl From<Error> for grant_table::Error {
    fn from(error: Error) -> Self {
        match error {
            Error::Grant { peer, gref, status } => Self::Grant { peer, gref, status },
            Error::NoSpace(what) => Self::NoSpace(what),
            Error::NoSuchDomain(domid) => Self::NoSuchDomain(domid),
            other => Self::Hypervisor(other.into()),
        }
    }
}

impl From<Error> for event_channel::Error {
    fn from(error: Error) -> Self {
        match error {
            Error::NoSpace(what) => Self::NoSpace(what),
            Error::NoSuchDomain(domid) => Self::NoSuchDomain(domid),
            Error::NoSuchPort { peer, port } => Self::NoSuchPort { peer, port },
            Error::Closed => Self::Closed,
            other => Self::Hypervisor(other.into()),
        }
    }
}

impl From<Error> for io::Error {
    fn from(error: Error) -> Self {
        match error {
            Error::Io { what, error } => Self::new(error.kind(), format!("{what}: {error}")),
            Error::Away => Self::new(io::ErrorKind::ConnectionRefused, error),
            other => Self::other(other),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::error::Error as _;

    #[test]
    fn io_error_printed_as_a_chain_names_its_cause_once() {
        let error = Error::io("open /dev/xen/gntdev", nix::errno::Errno::EACCES);
        assert_eq!(error.to_string(), "open /dev/xen/gntdev: Permission denied (os error 13)");
        assert!(error.source().is_none());
    }
}
