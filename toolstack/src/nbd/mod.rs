//! A network block device server over a unix socket: how ordinary programs reach a guest's disk.
//!
//! [`session`] is one connection as a value, bytes in and bytes out; [`server`] is the loop that moves them
//! between sockets and [`Blocks`]. The protocol is the fixed newstyle handshake and simple replies
//! (<https://github.com/NetworkBlockDevice/nbd/blob/master/doc/proto.md>).

pub mod handshake;
pub mod proto;
pub mod server;
pub mod session;

use std::io;
use std::os::fd::BorrowedFd;

pub use session::Session;

/// What an export is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Export {
    /// The name clients may ask for; the empty name is always this export too.
    pub name: String,
    /// Bytes.
    pub size: u64,
    /// Least and preferred size and alignment of a request, in bytes.
    pub block: u32,
    /// Writes are refused.
    pub read_only: bool,
    /// Discard is offered.
    pub trim: bool,
}

/// What is asked of the blocks. Offsets and lengths are in bytes, aligned to [`Export::block`], inside the export.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Op {
    /// Reads so many bytes.
    Read {
        /// From here.
        offset: u64,
        /// Bytes.
        len: u32,
    },
    /// Writes.
    Write {
        /// From here.
        offset: u64,
        /// What is written.
        data: Vec<u8>,
        /// Answered only once it would survive a loss of power.
        durable: bool,
    },
    /// Everything answered so far survives a loss of power.
    Flush,
    /// What is here may be forgotten.
    Trim {
        /// From here.
        offset: u64,
        /// Bytes.
        len: u32,
    },
}

/// An answer: for a read its bytes, for the rest none; or an errno.
pub type Outcome = Result<Vec<u8>, i32>;

/// Blocks that are asked now and answer later, in any order.
pub trait Blocks {
    /// Asks; the answer carries `id`. Gives the question back where there is no room now: ask again after a poll.
    ///
    /// # Errors
    /// The question, unchanged.
    fn submit(&mut self, id: u64, op: Op) -> Result<(), Op>;

    /// Sends what was asked on its way and takes the answers that have come.
    ///
    /// # Errors
    /// The blocks are gone for good.
    fn poll(&mut self, answers: &mut Vec<(u64, Outcome)>) -> io::Result<()>;

    /// About to sleep; `true` if answers have come meanwhile.
    ///
    /// # Errors
    /// As [`Blocks::poll`].
    fn arm(&mut self) -> io::Result<bool>;

    /// Readable when there is something to poll.
    fn fd(&self) -> BorrowedFd<'_>;
}
