// Not a core: does I/O or calls a hypervisor.

//! Disks and the engines that do their I/O. A [`Disk`] is one medium, shared by all its users; an [`Engine`] does its
//! I/O for one thread.

mod bounce;
mod error;
mod file;
mod io;
pub mod null;
pub mod open;
pub mod ram;
pub mod spec;
mod uring;

use std::io::Result;
use std::os::fd::BorrowedFd;

pub use crate::disk_request::Operation;
pub use bounce::{BounceBuffer, BouncePool};
pub use error::OpenError;
pub use file::FileDisk;
pub use io::{Buffer, Completion, Data, IoRequest, PageSegment};
pub use null::NullDisk;
pub use open::open;
pub use ram::RamDisk;
pub use spec::{Mode, Spec};

/// Properties of a disk.
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
    /// [`Operation::Flush`] has an effect, and is advertised to frontends.
    pub flush: bool,
}

impl DiskInfo {
    /// A writable disk of so many 512-byte sectors.
    pub fn new(sectors: u64) -> DiskInfo {
        DiskInfo { sectors, sector_size: 512, physical_sector_size: 512, read_only: false, flush: true }
    }
}

/// A medium, used by any number of engines at once.
///
/// ```
/// use blkback::engine::{Completion, Disk, DiskInfo, IoRequest, Operation, RamDisk};
/// use vm_memory::MmapRegion;
///
/// # fn main() -> std::io::Result<()> {
/// let disk = RamDisk::new(DiskInfo::new(2048))?;
/// let mut engine = disk.engine(32)?;
/// let region = MmapRegion::new(4096).map_err(std::io::Error::other)?;
/// engine.submit(IoRequest::private(1, Operation::Read, 0, region)).expect("the engine is not full");
/// let mut completions: Vec<Completion> = Vec::new();
/// engine.poll(&mut completions)?;
/// assert!(completions[0].result.is_ok());
/// # Ok(())
/// # }
/// ```
pub trait Disk: Send + Sync {
    /// The disk's name in log lines: a path, or the kind of disk.
    fn name(&self) -> String;

    /// Reads the disk's properties: the size of a file or device may have changed.
    ///
    /// # Errors
    /// The size of the file or device cannot be read.
    fn info(&self) -> Result<DiskInfo>;

    /// Makes an engine for the calling thread, which alone may use it, for up to `depth` operations at once.
    ///
    /// # Errors
    /// A descriptor or ring that the engine needs cannot be made.
    fn engine(&self, depth: usize) -> Result<Box<dyn Engine>>;
}

/// Asynchronous I/O on one disk. Each submitted operation comes back from [`Engine::poll`] exactly once, in any
/// order.
///
/// A flush makes durable the writes that came back before it was submitted.
pub trait Engine {
    /// Registers a pool's memory with the kernel, if that makes operations in it faster; returns whether it does.
    /// Called once, before anything is submitted.
    fn register(&mut self, pool: &BouncePool) -> bool {
        let _ = pool;
        false
    }

    /// Takes an operation, whose sectors the caller has checked. It may start only at the next
    /// [`Engine::poll`].
    ///
    /// # Errors
    /// Gives the operation back if the engine is full: poll first.
    fn submit(&mut self, request: Box<IoRequest>) -> std::result::Result<(), Box<IoRequest>>;

    /// Starts submitted operations and appends completed ones to `completions`. Never blocks.
    ///
    /// # Errors
    /// The engine itself failed. An operation's own error is in its [`Completion`].
    fn poll(&mut self, completions: &mut Vec<Completion>) -> Result<()>;

    /// A descriptor that is readable while [`Engine::poll`] would return a completion.
    fn fd(&self) -> BorrowedFd<'_>;
}
