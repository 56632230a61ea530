//! Where blocks live. A [`Disk`] is one medium, shared by all that use it; an [`Engine`] does its I/O for one
//! thread.

mod file;
mod io;
pub mod null;
pub mod open;
pub mod ram;
mod slab;
pub mod spec;
mod uring;

use std::io::Result;
use std::os::fd::BorrowedFd;

pub use crate::queue::Op;
pub use file::FileDisk;
pub use io::{Buffer, Data, Done, Io, Part};
pub use null::NullDisk;
pub use open::{OpenError, open};
pub use ram::RamDisk;
pub use slab::{Run, Slab};
pub use spec::{Mode, Spec};

/// What a disk is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DiskInfo {
    /// Length in units of 512 bytes.
    pub sectors: u64,
    /// Logical sector in bytes, a power of two from 512 to 4096: I/O is aligned to it.
    pub sector_size: u32,
    /// Physical sector in bytes, a multiple of `sector_size`: I/O aligned to it is fastest.
    pub physical_sector_size: u32,
    /// Writes are refused.
    pub read_only: bool,
    /// [`Op::Flush`] does something: offer it to frontends.
    pub flush: bool,
}

impl DiskInfo {
    /// A writable disk of so many 512-byte sectors.
    pub fn new(sectors: u64) -> DiskInfo {
        DiskInfo { sectors, sector_size: 512, physical_sector_size: 512, read_only: false, flush: true }
    }
}

/// A medium, used by any number of engines at once.
pub trait Disk: Send + Sync {
    /// For logs and statistics: a path, or a word.
    fn name(&self) -> String;

    /// What the disk is now: a file or device that has grown or shrunk is looked at again.
    ///
    /// # Errors
    /// The system's.
    fn info(&self) -> Result<DiskInfo>;

    /// An engine for the calling thread, which alone may use it, with room for `depth` operations.
    ///
    /// # Errors
    /// The system's.
    fn engine(&self, depth: usize) -> Result<Box<dyn Engine>>;
}

/// Asynchronous I/O on one disk. What is submitted comes back by [`Engine::poll`], in any order, exactly once.
///
/// A flush makes durable what came back before it was submitted.
pub trait Engine {
    /// Makes a slab's memory known for good, where that makes operations in it quicker; says whether it does. Asked
    /// once, before anything is submitted.
    fn register(&mut self, slab: &Slab) -> bool {
        let _ = slab;
        false
    }

    /// Takes an operation, whose sectors the caller has checked. It may start only at the next
    /// [`Engine::poll`].
    ///
    /// # Errors
    /// Gives the operation back where there is no room: poll first.
    fn submit(&mut self, io: Box<Io>) -> std::result::Result<(), Box<Io>>;

    /// Starts what was submitted and adds what is done to `done`. Never blocks.
    ///
    /// # Errors
    /// The engine itself is broken. An operation's own error is in its [`Done`].
    fn poll(&mut self, done: &mut Vec<Done>) -> Result<()>;

    /// Readable while [`Engine::poll`] would find something done.
    fn fd(&self) -> BorrowedFd<'_>;
}
