// Not a core: does I/O or calls a hypervisor.

//! The errors of a bridge.

use std::io;

use crate::{FdbError, InvalidBridgeSetting, MirrorError, fdb::Mac};

/// The errors of a bridge.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A port with this name exists; names are unique within a bridge.
    #[error("the bridge has a port named {0:?} already")]
    NameTaken(String),
    /// No port has this name. It may have been removed because it failed, which is logged.
    #[error("the bridge has no port named {0:?}")]
    NoSuchPort(String),
    /// The bridge has as many ports as it can have: a wire two, a learning bridge 65,536.
    #[error("cannot attach {name:?}: the bridge has all of its {max} ports")]
    TooManyPorts {
        /// The port that was to be attached.
        name: String,
        /// The most ports.
        max: usize,
    },
    /// What a wire does not have was asked of it: a forwarding database, settings, mirrors.
    #[error("the bridge is a wire, which has no {0}")]
    Wire(&'static str),
    /// An entry of the forwarding database cannot be given or removed.
    #[error("fdb: {mac} at {port:?}: {error}")]
    Fdb {
        /// The station's address.
        mac: Mac,
        /// The port.
        port: String,
        /// Why.
        error: FdbError,
    },
    /// A mirror cannot be added or removed.
    #[error("mirror {name:?}: {error}")]
    Mirror {
        /// Its name.
        name: String,
        /// Why.
        error: MirrorError,
    },
    /// A setting of the bridge has a value that it cannot have.
    #[error(transparent)]
    Setting(#[from] InvalidBridgeSetting),
    /// The port is captured as often as it can be at a time.
    #[error("port {name:?} is captured {max} times already, which is the most")]
    TooManyCaptures {
        /// The port.
        name: String,
        /// The most captures.
        max: usize,
    },
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
