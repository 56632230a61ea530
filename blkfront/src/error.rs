//! What can go wrong, and whose word it was.

use std::time::Duration;

use ring_abi::blkif::Status;
use xenstore::{KeyError, XenbusState};

use crate::queue::{Fault, Op};

/// A result of this frontend.
pub type Result<T> = std::result::Result<T, Error>;

/// Why something failed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The hypervisor refused.
    #[error(transparent)]
    Hypervisor(#[from] hypervisor::Error),
    /// The store failed.
    #[error(transparent)]
    Store(#[from] xenstore::Error),
    /// The backend's keys are wrong.
    #[error(transparent)]
    Key(#[from] KeyError),
    /// The backend broke the protocol; the device is closed.
    #[error(transparent)]
    Fault(#[from] Fault),
    /// The backend did not connect in time.
    #[error("{path}: the backend is {state} after {after:?}, expected Connected")]
    NotConnected {
        /// The backend's node.
        path: String,
        /// Its state.
        state: XenbusState,
        /// How long we waited.
        after: Duration,
    },
    /// The device is closed: by this end, by the toolstack, or because the backend gave up.
    #[error("the disk is closed")]
    Closed,
    /// The backend failed a request.
    #[error("{op:?} at sector {sector}: the backend answered {} ({})", status.0, meaning(*status))]
    Status {
        /// What was asked.
        op: Op,
        /// Where, in units of 512 bytes.
        sector: u64,
        /// The answer.
        status: Status,
    },
    /// Not whole sectors.
    #[error("{bytes} bytes at {offset}: expected multiples of the sector size, {sector_size}")]
    Alignment {
        /// First byte.
        offset: u64,
        /// Bytes.
        bytes: usize,
        /// The disk's sector in bytes.
        sector_size: u32,
    },
    /// Past the disk's end.
    #[error("{bytes} bytes at {offset}: the disk has {size}")]
    Range {
        /// First byte.
        offset: u64,
        /// Bytes.
        bytes: usize,
        /// The disk's length in bytes.
        size: u64,
    },
    /// No length of a buffer.
    #[error("{bytes} bytes: expected 1 to {}", crate::buffer::MOST_BYTES)]
    Length {
        /// Bytes found.
        bytes: usize,
    },
    /// The disk may only be read.
    #[error("the disk is read-only")]
    ReadOnly,
    /// The system refused.
    #[error("{0}")]
    System(#[from] nix::Error),
}

/// A status in words (blkif.h:502).
fn meaning(status: Status) -> &'static str {
    match status {
        Status::OKAY => "okay",
        Status::EOPNOTSUPP => "not supported",
        _ => "error",
    }
}
