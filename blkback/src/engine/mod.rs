// Not a core: does I/O or calls a hypervisor.

//! Disks and the engines that do their I/O. A [`Disk`] is one medium, shared by all its users; an [`Engine`] does its
//! I/O for one thread.

pub mod base_cache;
mod block_device;
mod bounce;
mod claims;
mod closing;
mod discard_slices;
mod discards;
mod done;
mod error;
mod file;
mod flush_guard;
pub mod format;
mod image;
mod io;
mod io_table;
mod lock;
mod medium_id;
pub mod null;
pub mod open;
pub mod ram;
pub mod spec;
mod threads;
mod uring;
mod zeroes;

use std::io::Result;
use std::os::fd::BorrowedFd;

pub use crate::request::{Operation, Tag};
pub use base_cache::BaseCache;
pub(crate) use bounce::Buffer;
pub use bounce::{BounceBuffer, BouncePool};
pub use closing::Closing;
pub use error::OpenError;
pub use file::FileDisk;
pub use flush_guard::FlushState;
pub use image::{Access, OpenImage};
pub use io::{Completion, IoRequest};
pub use io_table::{IoTable, Slices};
pub use medium_id::MediumId;
pub use null::NullDisk;
pub use open::{open, open_with};
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
    /// It is a CD-ROM, which is removable, and may have no medium: no sectors.
    pub cdrom: bool,
    /// What can be discarded; `None` where [`Operation::Discard`] is not supported, and not offered to frontends.
    pub discard: Option<DiscardLimits>,
}

/// The extents that a disk can discard.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DiscardLimits {
    /// Length of an extent in bytes: of a discard that covers one in part, that part need not be freed.
    pub granularity: u32,
    /// Bytes before the first extent.
    pub alignment: u32,
}

impl DiskInfo {
    /// A writable disk of so many 512-byte sectors.
    pub fn new(sectors: u64) -> DiskInfo {
        DiskInfo {
            sectors,
            sector_size: 512,
            physical_sector_size: 512,
            read_only: false,
            flush: true,
            cdrom: false,
            discard: None,
        }
    }
}

/// A medium, used by any number of engines at once. [`Engine`] has an example of one.
pub trait Disk: Send + Sync {
    /// The disk's name in log lines: a path, or the kind of disk.
    fn name(&self) -> String;

    /// Reads the disk's properties: the size of a file or device may have changed.
    ///
    /// # Errors
    /// The size of the file or device cannot be read.
    fn info(&self) -> Result<DiskInfo>;

    /// The medium that serves this disk's operations, and maybe other disks': rings that use the same one share it. `None` if it serves
    /// each at once.
    fn medium(&self) -> Option<MediumId> {
        None
    }

    /// Makes an engine for the calling thread, which alone may use it, for up to `depth` operations at once. All that
    /// can be missing is acquired here: the device is connected only after this.
    ///
    /// # Errors
    /// What the engine needs cannot be had. The text is shown to the user: what was refused, and what to do.
    fn engine(&self, depth: usize) -> Result<Box<dyn Engine>>;

    /// What can be done with the disk's image while it is served; `None` of a raw one.
    fn image(&self) -> Option<format::ImageControl> {
        None
    }

    /// What the disk has of the cache of files that many disks share; `None` if it uses none.
    fn cache(&self) -> Option<base_cache::DiskCache> {
        None
    }

    /// Tells when the disk's files are closed, once it is dropped; `None` if they are closed with it, or it has none.
    fn closing(&self) -> Option<Closing> {
        None
    }

    /// Has the engines that are made from now on make holes of writes of zeroes, where [`DiskInfo::discard`] is offered.
    fn set_detect_zeroes(&self, wanted: bool) {
        let _ = wanted;
    }
}

/// Asynchronous I/O on one disk, for one thread.
///
/// * An [`IoRequest`] is the engine's from [`Engine::submit`] until [`Engine::poll`] hands it back, exactly once and in any
///   order. Its sectors were checked. Its slices are valid while it lives, and the frontend may change them at any
///   time: read each byte once, and never make a reference to them.
/// * At most `depth` requests are out at once, and their [tags](IoRequest::tag) are different numbers below it.
/// * A discard has a [length](IoRequest::len) and no slices. No sector outside it changes.
/// * A flush makes durable the writes that were handed back before it was submitted. Nothing else is ordered.
/// * A request fails alone, by [`Completion::result`]; an error of [`Engine::poll`] closes the device. `EFAULT` says
///   that the kernel cannot do I/O in this memory: the request then comes again with other memory.
/// * Dropping an engine waits for its I/O. What it cannot wait for it [forgets](std::mem::forget): the memory is leaked.
///
/// A disk of zeroes:
///
/// ```
/// use blkback::{Disk, DiskInfo, Engine};
/// use blkback::engine::{Completion, IoRequest, Operation};
/// use nix::sys::eventfd::{EfdFlags, EventFd};
/// use std::io::Result;
/// use std::os::fd::{AsFd, BorrowedFd};
///
/// struct Zeroes;
///
/// impl Disk for Zeroes {
///     fn name(&self) -> String {
///         "zeroes".into()
///     }
///     fn info(&self) -> Result<DiskInfo> {
///         Ok(DiskInfo { read_only: true, ..DiskInfo::new(2048) })
///     }
///     fn engine(&self, _depth: usize) -> Result<Box<dyn Engine>> {
///         let never = EventFd::from_flags(EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK)?;
///         Ok(Box::new(ZeroEngine { done: Vec::new(), never }))
///     }
/// }
///
/// struct ZeroEngine {
///     done: Vec<Completion>,
///     never: EventFd,
/// }
///
/// impl Engine for ZeroEngine {
///     fn submit(&mut self, requests: &mut Vec<IoRequest>) {
///         for request in requests.drain(..) {
///             if request.operation() == Operation::Read {
///                 request.slices().for_each(|slice| slice.copy_from(&vec![0u8; slice.len()]));
///             }
///             self.done.push(Completion { request, result: Ok(()) });
///         }
///     }
///     fn poll(&mut self, completions: &mut Vec<Completion>) -> Result<()> {
///         completions.append(&mut self.done);
///         Ok(())
///     }
///     fn fd(&self) -> BorrowedFd<'_> {
///         // What is submitted is complete at the next poll: there is nothing to wait for.
///         self.never.as_fd()
///     }
/// }
/// ```
pub trait Engine {
    /// Registers a pool's memory with the kernel, if that makes operations in it faster; returns whether it does.
    /// Called once, before anything is submitted.
    fn register(&mut self, pool: &BouncePool) -> bool {
        let _ = pool;
        false
    }

    /// Takes all operations out of `requests`. They may start only at the next [`Engine::poll`].
    fn submit(&mut self, requests: &mut Vec<IoRequest>);

    /// Starts submitted operations and appends completed ones to `completions`. Never blocks.
    ///
    /// # Errors
    /// The engine itself failed.
    fn poll(&mut self, completions: &mut Vec<Completion>) -> Result<()>;

    /// Whether operations wait for the next [`Engine::poll`], as where the kernel was short of memory: the caller polls
    /// again after a short while, even if the descriptor does not become readable.
    fn needs_poll(&self) -> bool {
        false
    }

    /// A descriptor that is readable while [`Engine::poll`] would return a completion, but for those that complete in
    /// [`Engine::submit`]: the caller polls after it has submitted.
    fn fd(&self) -> BorrowedFd<'_>;

    /// As [`Engine::fd`], for flushes that wait for those of the disk's other engines.
    fn flush_fd(&self) -> Option<BorrowedFd<'_>> {
        None
    }

    /// As [`Engine::fd`], for discards, if others complete those than what reads and writes.
    fn discard_fd(&self) -> Option<BorrowedFd<'_>> {
        None
    }
}
