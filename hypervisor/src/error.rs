//! What can go wrong at the seam, and whose word it was.

use ring_abi::{DomId, EventPort, GrantRef};
use std::io;

/// A result of the seam.
pub type Result<T> = std::result::Result<T, Error>;

/// Why a call at the seam failed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A grant was refused; the status is `GNTST_*` of grant_table.h, below zero.
    #[error("grant {gref} of domain {peer}: {} (GNTST {status})", reason(*.status))]
    Grant {
        /// The granting domain.
        peer: DomId,
        /// The reference.
        gref: GrantRef,
        /// `GNTST_*`.
        status: i16,
    },
    /// No pages, references or ports left.
    #[error("no space left: {0}")]
    NoSpace(&'static str),
    /// The peer domain is not there, or is gone.
    #[error("domain {0} is not there")]
    NoSuchDomain(DomId),
    /// Nobody listens on this port for us.
    #[error("domain {peer} does not listen on event channel {port} for us")]
    NoSuchPort {
        /// The domain asked.
        peer: DomId,
        /// The port asked.
        port: EventPort,
    },
    /// The other end of an event channel is gone.
    #[error("the other end of the event channel is gone")]
    Closed,
    /// This world cannot do it.
    #[error("{0} is not possible on this hypervisor")]
    Unsupported(&'static str),
    /// Somebody else has it, for now.
    #[error("in use: {0}")]
    Busy(String),
    /// We may not.
    #[error("not permitted: {0}")]
    Denied(String),
    /// The peer or the broker broke the rules of this seam.
    #[error("protocol error: {0}")]
    Protocol(String),
    /// The system refused.
    #[error("{what}: {source}")]
    Io {
        /// What was being done, and to what.
        what: String,
        /// The system's answer.
        source: io::Error,
    },
}

impl Error {
    /// Wraps a system error with what was being done.
    pub fn io(what: impl Into<String>, source: impl Into<io::Error>) -> Self {
        Self::Io { what: what.into(), source: source.into() }
    }
}

/// `GNTST_*` in words (grant_table.h:660).
pub fn reason(status: i16) -> &'static str {
    match status {
        0 => "okay",
        -2 => "unrecognised domain",
        -3 => "unrecognised or inappropriate grant reference",
        -4 => "inappropriate handle",
        -5 => "inappropriate virtual address",
        -6 => "inappropriate device address",
        -7 => "out of space in the I/O MMU",
        -8 => "permission denied",
        -9 => "bad page",
        -10 => "copy arguments cross a page boundary",
        -11 => "page address size too large",
        -12 => "operation not done; try again",
        -13 => "out of space",
        _ => "general error",
    }
}
