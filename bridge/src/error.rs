// Not a core: does I/O or calls a hypervisor.

//! The errors of a bridge.

use std::io;

/// The errors of a bridge.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A port with this name exists; names are unique within a bridge.
    #[error("the bridge has a port named {0:?} already")]
    NameTaken(String),
    /// No port has this name. It may have been removed because it failed, which is logged.
    #[error("the bridge has no port named {0:?}")]
    NoSuchPort(String),
    /// The bridge has 65,536 ports.
    #[error("the bridge has too many ports to attach {0:?}")]
    TooManyPorts(String),
    /// The worker thread has ended.
    #[error("the bridge has stopped")]
    Stopped,
    /// A system call failed. The text has the cause, which is therefore not the error's `source` as well.
    #[error("{what}: {error}")]
    Os {
        /// The operation.
        what: String,
        /// The system's error.
        error: io::Error,
    },
}
