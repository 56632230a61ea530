// Not a core: does I/O or calls a hypervisor.

//! The errors of a ring's thread.

use std::io;

use ring_abi::ring::{BadMemory, Fault};
use xenbus::driver::{Failure, errno};

use crate::queue::ResumeError;

/// Why a ring's thread could not be started.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The ring's pages cannot be mapped.
    #[error("mapping the ring: {0}")]
    Ring(grant_table::Error),
    /// The event channel cannot be bound.
    #[error("binding the event channel: {0}")]
    Channel(event_channel::Error),
    /// The frontend's memory cannot be a ring.
    #[error(transparent)]
    Memory(#[from] BadMemory),
    /// The ring cannot be resumed, or its requests in flight not recorded.
    #[error(transparent)]
    Resume(#[from] ResumeError),
    /// The disk's engine cannot be made.
    #[error("disk engine: {0}")]
    Engine(io::Error),
    /// A thread or descriptor cannot be made.
    #[error("starting the ring's thread: {0}")]
    System(#[from] io::Error),
    /// The thread panicked while it started.
    #[error("the ring's thread panicked")]
    Panic,
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
            StartError::Ring(_) | StartError::Channel(_) | StartError::Memory(_) => libc::EINVAL,
            StartError::Resume(_) => libc::EPROTO,
            StartError::Engine(error) | StartError::System(error) => errno(error),
            StartError::Panic => libc::EIO,
        }
    }
}

/// Why a ring's thread exited without being told to stop.
#[derive(Debug, thiserror::Error)]
pub enum ExitReason {
    /// The frontend broke the protocol.
    #[error(transparent)]
    Fault(#[from] Fault),
    /// The frontend's end of the event channel is closed.
    #[error("the frontend is gone")]
    PeerGone,
    /// An operation on the event channel failed.
    #[error("event channel: {0}")]
    Channel(event_channel::Error),
    /// The engine itself failed, not only one operation.
    #[error("disk engine: {0}")]
    Engine(io::Error),
    /// poll failed.
    #[error("waiting: {0}")]
    Wait(io::Error),
    /// The thread panicked.
    #[error("the ring's thread panicked")]
    Panic,
}

impl ExitReason {
    /// The errno that is reported to toolstacks.
    pub fn errno(&self) -> i32 {
        match self {
            ExitReason::Fault(_) => libc::EPROTO,
            ExitReason::PeerGone => libc::EPIPE,
            ExitReason::Engine(e) | ExitReason::Wait(e) => errno(e),
            ExitReason::Channel(_) | ExitReason::Panic => libc::EIO,
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
