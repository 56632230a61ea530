// Not a core: does I/O or calls a hypervisor.

//! Why a region of an [`InflightDir`](crate::InflightDir) cannot be created or opened.

use std::io;

/// The result of an operation on an [`InflightDir`](crate::InflightDir).
pub type Result<T> = std::result::Result<T, Error>;

/// Why a region cannot be created or opened.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// Another process has the region open: an earlier backend that has not exited yet.
    #[error("in use: {0}")]
    Busy(String),
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
    pub(crate) fn io(what: impl Into<String>, error: impl Into<io::Error>) -> Self {
        Self::Io { what: what.into(), error: error.into() }
    }
}
