// Not a core: does I/O or calls a hypervisor.

//! The errors of this frontend.

use std::io;
use std::time::Duration;

use ring_abi::blkif::Status;
use xenbus::{KeyError, XenbusState};

use crate::queue::{Fault, Operation};

/// A result of this frontend.
pub type Result<T> = std::result::Result<T, Error>;

/// Why an operation on the disk failed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// Pages cannot be shared.
    #[error(transparent)]
    Grant(#[from] grant_table::Error),
    /// An operation on the event channel failed.
    #[error(transparent)]
    Channel(#[from] event_channel::Error),
    /// The shared pages cannot hold a ring.
    #[error("initialising the ring: {0}")]
    Memory(#[from] ring_abi::ring::BadMemory),
    /// An operation on the store failed.
    #[error(transparent)]
    Store(#[from] xenstore::Error),
    /// A key of the backend is invalid.
    #[error(transparent)]
    Key(#[from] KeyError),
    /// The backend broke the protocol; the device is closed.
    #[error(transparent)]
    Fault(#[from] Fault),
    /// The backend did not connect in time.
    #[error("{path}: the backend is {state} after {after:?}, expected Connected")]
    NotConnected {
        /// The backend's directory in the store.
        path: String,
        /// The backend's state.
        state: XenbusState,
        /// How long this end waited.
        after: Duration,
    },
    /// The device is closed: by this end, by the toolstack, or by the backend.
    #[error("the disk is closed")]
    Closed,
    /// The backend failed a request.
    #[error("{operation:?} at sector {sector}: the backend answered {} ({})", status.0, meaning(*status))]
    Status {
        /// The request's operation.
        operation: Operation,
        /// First sector, in units of 512 bytes.
        sector: u64,
        /// The response's status.
        status: Status,
    },
    /// Offset or length is no multiple of the sector size.
    #[error("{bytes} bytes at {offset}: expected multiples of the sector size, {sector_size}")]
    Alignment {
        /// First byte.
        offset: u64,
        /// Length in bytes.
        bytes: usize,
        /// The disk's sector size in bytes.
        sector_size: u32,
    },
    /// The range extends past the disk's end.
    #[error("{bytes} bytes at {offset}: the disk has {size}")]
    Range {
        /// First byte.
        offset: u64,
        /// Length in bytes.
        bytes: usize,
        /// The disk's length in bytes.
        size: u64,
    },
    /// A blocking call was made while requests of [`Disk::submit`](crate::Disk::submit) are in flight: it would take their
    /// completions.
    #[error("{requests} requests are in flight; expected none when a blocking call is made")]
    InFlight {
        /// How many.
        requests: usize,
    },
    /// An invalid length for a buffer.
    #[error("{bytes} bytes: expected 1 to {max}")]
    Length {
        /// Bytes asked for.
        bytes: usize,
        /// The most bytes of a request.
        max: usize,
    },
    /// The backend does not offer discard, or not for this disk.
    #[error("the backend does not offer discard for this disk (feature-discard)")]
    NoDiscard,
    /// The disk is read-only.
    #[error("the disk is read-only")]
    ReadOnly,
    /// A system call failed.
    #[error("waiting: {0}")]
    Io(#[from] io::Error),
}

impl Error {
    /// Whether the domain can grant no more pages now: some may be given back later.
    pub fn is_out_of_pages(&self) -> bool {
        matches!(self, Error::Grant(grant_table::Error::NoSpace(_)))
    }
}

/// Describes a status (blkif.h:502).
fn meaning(status: Status) -> &'static str {
    match status {
        Status::OKAY => "okay",
        Status::EOPNOTSUPP => "not supported",
        _ => "error",
    }
}
