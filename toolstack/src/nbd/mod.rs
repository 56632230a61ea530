//! A network block device (NBD) server on a unix socket, through which ordinary programs use a guest's disk.
//!
//! [`session`] is the protocol of one connection without I/O, bytes in and bytes out; [`server`] is the loop that moves
//! them between sockets and [`Blocks`]. The protocol is the fixed newstyle handshake and simple replies
//! (<https://github.com/NetworkBlockDevice/nbd/blob/master/doc/proto.md>).

pub mod handshake;
pub mod output;
pub mod proto;
pub mod server;
pub mod session;

use std::io;
use std::os::fd::BorrowedFd;

pub use session::Session;

/// The properties of an export.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Export {
    /// The name by which clients select the export; the empty name selects it too.
    pub name: String,
    /// The size in bytes.
    pub size: u64,
    /// The smallest and preferred size and alignment of a request, in bytes.
    pub block: u32,
    /// Whether writes are rejected.
    pub read_only: bool,
    /// Whether discard (TRIM) is advertised.
    pub trim: bool,
}

/// A request to the blocks. Offsets and lengths are in bytes, aligned to [`Export::block`], inside the export.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Op {
    /// Reads `len` bytes.
    Read {
        /// The offset of the first byte.
        offset: u64,
        /// The number of bytes.
        len: u32,
    },
    /// Writes `data`.
    Write {
        /// The offset of the first byte.
        offset: u64,
        /// The bytes to write.
        data: Vec<u8>,
        /// Whether the write completes only once it would survive a loss of power (FUA).
        durable: bool,
    },
    /// Completes once all writes completed before would survive a loss of power.
    Flush,
    /// Discards `len` bytes.
    Trim {
        /// The offset of the first byte.
        offset: u64,
        /// The number of bytes.
        len: u32,
        /// As of a write.
        durable: bool,
    },
    /// Writes `len` bytes of zeroes, which stay allocated.
    WriteZeroes {
        /// The offset of the first byte.
        offset: u64,
        /// The number of bytes.
        len: u32,
        /// As of a write.
        durable: bool,
    },
}

/// The outcome of a request: the bytes of a read, none of other requests; or an errno.
pub type Outcome = Result<Vec<u8>, i32>;

/// Blocks that take requests, and complete them later in any order.
pub trait Blocks {
    /// The properties now: a disk may grow, and one whose backend restarts may have others.
    fn export(&self) -> &Export;

    /// Says whether a client has the export open.
    ///
    /// # Errors
    /// The blocks cannot be used any more.
    fn set_in_use(&mut self, in_use: bool) -> io::Result<()>;

    /// Submits a request, which completes with this `id`.
    ///
    /// # Errors
    /// The request, if no more are taken now: it is to be submitted again after a poll.
    fn submit(&mut self, id: u64, op: Op) -> Result<(), Op>;

    /// Starts submitted requests, and appends those that have completed to `completed`.
    ///
    /// # Errors
    /// The blocks cannot be used any more.
    fn poll(&mut self, completed: &mut Vec<(u64, Outcome)>) -> io::Result<()>;

    /// Enables the event of [`Blocks::fd`] before the caller sleeps; `true` if there is something to poll already.
    ///
    /// # Errors
    /// The blocks cannot be used any more.
    fn arm(&mut self) -> io::Result<bool>;

    /// Returns a descriptor that is readable when there is something to poll.
    fn fd(&self) -> BorrowedFd<'_>;
}
