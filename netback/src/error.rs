// Not a core: does I/O or calls a hypervisor.

//! The errors of a vif's connection.

use crate::assemble::Fault;
use inflight::ResumeError;
use nix::libc;
use ring_abi::ring::BadMemory;
use std::io;
use xenbus::driver::{Failure, errno};

/// Why a vif's connection could not be started.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The rings' pages cannot be mapped.
    #[error("mapping the rings: {0}")]
    Ring(grant_table::Error),
    /// An event channel cannot be bound.
    #[error("binding the event channels: {0}")]
    Channel(event_channel::Error),
    /// The frontend is to be sent pages, which this hypervisor does not transfer.
    #[error("request-rx-copy: found 0, expected 1: pages are not flipped on this hypervisor")]
    NoFlip,
    /// The frontend's memory cannot be a ring.
    #[error(transparent)]
    Memory(#[from] BadMemory),
    /// The response logs cannot be created or opened.
    #[error(transparent)]
    Inflight(#[from] inflight::Error),
    /// The response logs of an earlier process do not match the rings.
    #[error(transparent)]
    Resume(#[from] ResumeError),
    /// There are no response logs of this connection.
    #[error("no response logs of this connection")]
    NotLogged,
    /// The bridge does not take the port.
    #[error(transparent)]
    Bridge(#[from] bridge::Error),
    /// A descriptor cannot be made.
    #[error("starting the connection: {0}")]
    System(#[from] io::Error),
}

impl StartError {
    /// The failure of a device whose frontend's rings cannot be served now. What the frontend has offered to an earlier
    /// backend's process may be in use by that, or about to be replaced.
    pub(crate) fn failure(&self) -> Failure {
        let may_pass = matches!(
            self,
            StartError::Ring(_) | StartError::Channel(event_channel::Error::NoSuchPort { .. })
        );
        Failure { may_pass, ..Failure::new(self.errno(), self) }
    }

    /// The errno that is reported to toolstacks.
    pub fn errno(&self) -> i32 {
        match self {
            StartError::Ring(_) | StartError::Channel(_) | StartError::Memory(_) | StartError::NoFlip => {
                libc::EINVAL
            }
            StartError::Resume(_) | StartError::NotLogged => libc::EPROTO,
            StartError::Inflight(_) | StartError::Bridge(_) => libc::EIO,
            StartError::System(error) => errno(error),
        }
    }
}

/// Why a connection ended without having been closed.
#[derive(Debug, thiserror::Error)]
pub enum ExitReason {
    /// The frontend broke the protocol.
    #[error(transparent)]
    Fault(#[from] Fault),
    /// The frontend's end of an event channel is closed: it closes, or has died.
    #[error("the frontend is gone")]
    PeerGone,
    /// An operation on an event channel failed.
    #[error("event channel: {0}")]
    Channel(event_channel::Error),
    /// The hypervisor has refused a batch of copies or of transfers.
    #[error("copying or flipping: {0}")]
    Grant(#[from] grant_table::Error),
}

impl ExitReason {
    /// The errno that is reported to toolstacks.
    pub fn errno(&self) -> i32 {
        match self {
            ExitReason::Fault(_) => libc::EPROTO,
            ExitReason::PeerGone => libc::EPIPE,
            ExitReason::Channel(_) | ExitReason::Grant(_) => libc::EIO,
        }
    }

    /// The kind of the error that the bridge is given.
    pub(crate) fn kind(&self) -> io::ErrorKind {
        match self {
            ExitReason::PeerGone => io::ErrorKind::BrokenPipe,
            _ => io::ErrorKind::Other,
        }
    }
}

impl From<event_channel::Error> for ExitReason {
    fn from(error: event_channel::Error) -> Self {
        match error {
            event_channel::Error::Closed => ExitReason::PeerGone,
            other => ExitReason::Channel(other),
        }
    }
}
