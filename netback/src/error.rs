// Not a core: does I/O or calls a hypervisor.

//! Errors of a vif's connection.

use crate::assemble::Fault;
use inflight::ResumeError;
use std::io;

/// Why a vif could not be connected, or its connection failed.
#[derive(Debug, thiserror::Error)]
pub enum ConnectionError {
    /// The guest broke the protocol.
    #[error(transparent)]
    Fault(#[from] Fault),
    /// Pages cannot be shared, mapped or copied.
    #[error(transparent)]
    Grant(#[from] grant_table::Error),
    /// The guest closed its end of an event channel, or an operation on it failed.
    #[error(transparent)]
    Channel(#[from] event_channel::Error),
    /// The response logs cannot be created or opened.
    #[error(transparent)]
    Inflight(#[from] inflight::Error),
    /// The response logs of an earlier process do not match the rings.
    #[error(transparent)]
    Resume(#[from] ResumeError),
    /// There are no response logs of this connection.
    #[error("no response logs of this connection")]
    NotLogged,
    /// A system call failed.
    #[error(transparent)]
    Io(#[from] io::Error),
}

impl From<ring_abi::ring::BadMemory> for ConnectionError {
    fn from(error: ring_abi::ring::BadMemory) -> Self {
        Self::Io(io::Error::other(error))
    }
}
