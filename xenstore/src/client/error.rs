//! What can go wrong between a client and the store.

use std::io;
use std::time::Duration;

use ring_abi::xs_wire::{MessageType, XsError};

use crate::wire::TooLong;
use crate::xenbus::keys::excerpt;

/// A client's result.
pub type Result<T> = std::result::Result<T, Error>;

/// Why a request failed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The store answered with an error.
    #[error("xenstore {kind:?} {path:?}: {error}")]
    Store {
        /// What was asked.
        kind: MessageType,
        /// Of which node (or the request's first argument).
        path: String,
        /// The answer.
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
        /// What was to be asked.
        kind: MessageType,
        /// Of which node.
        path: String,
        /// What is wrong with it.
        what: &'static str,
    },
    /// A transaction met other people's writes again and again.
    #[error("xenstore transaction: still conflicting after {attempts} attempts")]
    Conflict {
        /// How often it was tried.
        attempts: u32,
    },
    /// More watch events came than are queued; this many were thrown away.
    #[error("xenstore watch events lost: {0}")]
    EventsLost(u64),
    /// No reply within the time set.
    #[error("xenstore {kind:?} {path:?}: no reply within {after:?}")]
    TimedOut {
        /// What was asked.
        kind: MessageType,
        /// Of which node.
        path: String,
        /// The time set.
        after: Duration,
    },
    /// What came back is not the protocol.
    #[error("xenstore protocol: {0}")]
    Protocol(String),
    /// The store closed the connection.
    #[error("xenstore closed the connection")]
    Closed,
    /// The stream failed.
    #[error("xenstore stream: {0}")]
    Io(#[from] io::Error),
}

impl Error {
    /// A value that is not of the expected form; `found` is shortened.
    pub fn value(path: impl Into<String>, found: &str, expected: &'static str) -> Error {
        Error::Value { path: path.into(), found: excerpt(found), expected }
    }

    /// The store's answer, if that is what this is.
    pub fn store_error(&self) -> Option<XsError> {
        match self {
            Error::Store { error, .. } => Some(*error),
            _ => None,
        }
    }

    /// The node is not there.
    pub fn is_not_found(&self) -> bool {
        self.store_error() == Some(XsError::ENOENT)
    }
}

impl From<TooLong> for Error {
    fn from(error: TooLong) -> Error {
        Error::Protocol(error.to_string())
    }
}
