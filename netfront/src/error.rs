// Not a core: does I/O or calls a hypervisor.

//! Errors of an interface and of its connections.

use crate::tx::Fault;
use std::io;
use xenbus::KeyError;

/// Why an interface cannot be opened, or cannot be used any more.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The store refused a request, or has no such interface.
    #[error(transparent)]
    Store(#[from] xenstore::Error),
    /// A key is missing, or has a value of another form.
    #[error(transparent)]
    Key(#[from] KeyError),
    /// The connection could not be set up.
    #[error(transparent)]
    Connection(#[from] ConnectionError),
    /// A system call failed.
    #[error("waiting: {0}")]
    Io(#[from] io::Error),
    /// The toolstack has removed the interface.
    #[error("{0} was removed")]
    Removed(String),
}

/// Why a connection failed.
#[derive(Debug, thiserror::Error)]
pub enum ConnectionError {
    /// The backend broke the protocol.
    #[error(transparent)]
    Fault(#[from] Fault),
    /// Pages cannot be shared, mapped or copied.
    #[error(transparent)]
    Grant(#[from] grant_table::Error),
    /// The backend closed its end of an event channel, or an operation on it failed.
    #[error(transparent)]
    Channel(#[from] event_channel::Error),
    /// The shared page cannot hold a ring.
    #[error(transparent)]
    Memory(#[from] ring_abi::ring::BadMemory),
    /// A system call failed.
    #[error(transparent)]
    Io(io::Error),
}
