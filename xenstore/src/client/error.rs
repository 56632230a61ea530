// Not a core: does I/O or calls a hypervisor.

//! The errors of a client.

use std::io;
use std::time::Duration;

use ring_abi::xenbus::value::Excerpt;
use ring_abi::xs_wire::{MessageType, XsError};

use crate::wire::TooLong;

/// A client's result.
pub type Result<T> = std::result::Result<T, Error>;

/// Why a request failed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The store replied with an error.
    #[error("xenstore {kind:?} {path:?}: {error}")]
    Store {
        /// The request's type.
        kind: MessageType,
        /// The request's node, or its first argument.
        path: String,
        /// The store's error.
        error: XsError,
    },
    /// A node's value is not of the expected form.
    #[error("xenstore node {path:?}: found {found:?}, expected {expected}")]
    Value {
        /// The node.
        path: String,
        /// Its value, shortened.
        found: String,
        /// The form expected.
        expected: &'static str,
    },
    /// The request does not fit the wire: it has a NUL in a string, or too many bytes.
    #[error("xenstore {kind:?} {path:?}: {what}")]
    Request {
        /// The request's type.
        kind: MessageType,
        /// The request's node.
        path: String,
        /// What does not fit.
        what: &'static str,
    },
    /// Every attempt of a transaction conflicted with another client's write.
    #[error("xenstore transaction: still conflicting after {attempts} attempts")]
    Conflict {
        /// Number of attempts.
        attempts: u32,
    },
    /// More watch events came than can be queued; some of the watches with these tokens were dropped.
    #[error("xenstore watch events lost of {}", .0.join(", "))]
    EventsLost(Vec<String>),
    /// No reply came within the time of [`Client::set_reply_timeout`](super::Client::set_reply_timeout).
    #[error("xenstore {kind:?} {path:?}: no reply within {after:?}")]
    TimedOut {
        /// The request's type.
        kind: MessageType,
        /// The request's node.
        path: String,
        /// The time set.
        after: Duration,
    },
    /// The store sent bytes that violate the protocol.
    #[error("xenstore protocol: {0}")]
    Protocol(String),
    /// The store closed the connection.
    #[error("xenstore closed the connection")]
    Closed,
    /// The stream failed. The text has the cause, which is therefore not the error's `source` as well.
    #[error("xenstore stream: {0}")]
    Io(io::Error),
}

impl Error {
    /// Makes an [`Error::Value`]; `found` is shortened.
    pub fn value(path: impl Into<String>, found: &str, expected: &'static str) -> Error {
        Error::Value { path: path.into(), found: Excerpt(found).to_string(), expected }
    }

    /// The store's error, where this is [`Error::Store`].
    pub fn store_error(&self) -> Option<XsError> {
        match self {
            Error::Store { error, .. } => Some(*error),
            _ => None,
        }
    }

    /// Whether the connection cannot be used any more.
    pub fn is_disconnected(&self) -> bool {
        matches!(self, Error::Closed | Error::Io(_) | Error::Protocol(_))
    }

    /// Whether the store replied ENOENT.
    pub fn is_not_found(&self) -> bool {
        self.store_error() == Some(XsError::ENOENT)
    }
}

impl From<io::Error> for Error {
    fn from(error: io::Error) -> Error {
        Error::Io(error)
    }
}

impl From<TooLong> for Error {
    fn from(error: TooLong) -> Error {
        Error::Protocol(error.to_string())
    }
}
