// Not a core: does I/O or calls a hypervisor.

//! The cache as its users have it: the whole of it, and one file.

use super::counters::{Counters, Looked};
use super::files::{FileId, Number};
use super::shared::{Fill, Filled, Part, Pin, Shared, Waiter};
use super::table::Begun;
use crate::engine::done::Done;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use std::fs::File;
use std::io;
use std::os::unix::fs::{FileExt, FileTypeExt, MetadataExt};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use vm_memory::VolatileSlice;
use xenbus::stats;

/// A block has 2 to the power of this bytes: `docs/decisions/0028-a-base-is-read-once.md` says why.
const BLOCK_BITS: u32 = 15;
/// Blocks of a cache, at most.
const MAX_BLOCKS: u64 = 1 << 30;

/// Blocks of files that are below guests' own images, in memory: each is read from the medium once, for all disks that use the file. Clones
/// are the same cache.
#[derive(Clone, Debug, Default)]
pub struct BaseCache(Option<Arc<Shared>>);

impl BaseCache {
    /// A cache of so many bytes at most, of which none are used yet. With fewer than a block has, nothing is cached.
    ///
    /// # Errors
    /// The address space cannot be had.
    pub fn new(bytes: u64) -> io::Result<BaseCache> {
        BaseCache::with_blocks(bytes, BLOCK_BITS)
    }

    /// As [`BaseCache::new`], with blocks of 2 to the power of `block_bits` bytes, a page or more.
    ///
    /// # Errors
    /// As [`BaseCache::new`]; `EINVAL` for other blocks.
    pub fn with_blocks(bytes: u64, block_bits: u32) -> io::Result<BaseCache> {
        if !(12..=24).contains(&block_bits) {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        let blocks = (bytes >> block_bits).min(MAX_BLOCKS) as u32;
        match blocks {
            0 => Ok(BaseCache::default()),
            _ => Ok(BaseCache(Some(Arc::new(Shared::new(blocks, block_bits)?)))),
        }
    }

    /// Forgets all that is known of a file, for as long as the value lives that is returned: its users read the file itself meanwhile, and
    /// what they have begun to read before enters no more. To be called before the file is written.
    pub fn forget(&self, file: FileId) -> Forgotten {
        if let Some(shared) = &self.0 {
            shared.bypass(file);
        }
        Forgotten { cache: self.clone(), file }
    }
}

/// The cache as one disk has it, which counts what it has of it.
#[derive(Clone, Debug)]
pub struct DiskCache {
    cache: BaseCache,
    counters: Arc<Counters>,
}

impl DiskCache {
    /// That of a disk which has had nothing of the cache yet.
    pub fn new(cache: &BaseCache) -> DiskCache {
        DiskCache { cache: cache.clone(), counters: Arc::default() }
    }

    /// The cache of one of the disk's open files, of so many bytes; `None` if nothing is cached.
    pub(in crate::engine) fn file(&self, file: &File, bytes: u64) -> Option<CachedFile> {
        let shared = self.cache.0.clone()?;
        let id = FileId::of(file)?;
        let (number, counters) = (shared.join(id), self.counters.clone());
        Some(CachedFile { shared, id, number, end: bytes / 512 * 512, counters })
    }

    /// What the disk has had of the cache; `None` if nothing is cached.
    pub fn stats(&self) -> Option<stats::BaseCache> {
        let shared = self.cache.0.as_ref()?;
        let Looked { hits, waits, misses, read_bytes } = self.counters.get();
        let (cached_bytes, limit_bytes) = (shared.used(), shared.bytes());
        Some(stats::BaseCache { hits, waits, misses, read_bytes, cached_bytes, limit_bytes })
    }
}

/// A file that is not cached while this lives.
#[derive(Debug)]
#[must_use = "the file is cached again once this is dropped"]
pub struct Forgotten {
    cache: BaseCache,
    file: FileId,
}

impl Drop for Forgotten {
    fn drop(&mut self) {
        if let Some(shared) = &self.cache.0 {
            shared.end_bypass(self.file);
        }
    }
}

impl FileId {
    /// Of an open file; `None` if it cannot be asked.
    pub fn of(file: &File) -> Option<FileId> {
        let meta = file.metadata().ok()?;
        Some(match meta.file_type().is_block_device() {
            true => FileId::Device(meta.rdev()),
            false => FileId::File { device: meta.dev(), inode: meta.ino() },
        })
    }
}

/// One open file, as one disk has it. When the last one of a file is dropped its blocks are forgotten.
#[derive(Debug)]
pub(in crate::engine) struct CachedFile {
    pub(super) shared: Arc<Shared>,
    id: FileId,
    number: Number,
    /// Bytes of the file that are cached: all its whole sectors.
    end: u64,
    pub(super) counters: Arc<Counters>,
}

/// What is to be done for a part of an operation.
#[derive(Debug)]
pub(super) enum Step {
    /// To copy it from a block that is there.
    Copy(Part, Pin),
    /// To wait.
    Wait,
    /// To read the block, and to wait for that.
    Read(Fill),
    /// To read it from the file, and nothing else.
    Bypass(Part),
}

impl CachedFile {
    /// Calls `act` with bytes of a block that is there, which all lie in it, and stay as they are meanwhile; `false` if they are not there.
    #[inline]
    pub(super) fn with(
        &self,
        block: u64,
        from: usize,
        bytes: usize,
        act: impl FnOnce(VolatileSlice<'_>),
    ) -> bool {
        let file = self.number.load(Ordering::Acquire);
        self.shared.with(file, block, from..from + bytes, act)
    }

    /// What is to be done for a part whose bytes are not there.
    pub(super) fn begin(&self, block: u64, part: Part, to: &Arc<Done<Filled>>) -> Step {
        let start = block << self.shared.block_bits;
        let bytes = self.end.saturating_sub(start).min(self.shared.block() as u64) as usize;
        let part_end = part.from + part.bytes.len();
        if part_end > bytes {
            return Step::Bypass(part);
        }
        let waiter = Waiter { to: to.clone(), part: part.clone() };
        match self.shared.begin(&self.number, block, waiter) {
            Begun::Ready(at) => Step::Copy(part, Pin::of(&self.shared, at)),
            Begun::Waits => Step::Wait,
            Begun::Fill(at) => Step::Read(Fill::new(&self.shared, at, block, bytes)),
            Begun::Refused(waiter) => Step::Bypass(waiter.part),
        }
    }

    /// As [`BaseCache::forget`].
    pub(in crate::engine) fn forget(&self) -> Forgotten {
        BaseCache(Some(self.shared.clone())).forget(self.id)
    }

    /// Reads bytes of the file, as [`FileExt::read_at`] does: some of them, by a thread that may wait. Buffer and offset are aligned as the
    /// file needs it.
    pub(in crate::engine) fn read_at(&self, file: &File, into: &mut [u8], offset: u64) -> io::Result<usize> {
        let from = offset as usize & (self.shared.block() - 1);
        let bytes = into.len().min(self.shared.block() - from);
        let mut looked = Looked::default();
        let read = self.read_part(file, &mut into[..bytes], offset, &mut looked);
        self.counters.add(looked);
        read
    }

    /// Reads bytes of one block.
    fn read_part(&self, file: &File, into: &mut [u8], offset: u64, looked: &mut Looked) -> io::Result<usize> {
        let block = offset >> self.shared.block_bits;
        let from = (offset - (block << self.shared.block_bits)) as usize;
        if self.with(block, from, into.len(), |slice| copy(slice, into)) {
            looked.hits += 1;
            return Ok(into.len());
        }
        let done = Arc::new(Done::new(1)?);
        let mut list = Vec::new();
        match self.begin(block, Part { whole: 0, bytes: 0..into.len(), from }, &done) {
            Step::Copy(part, pin) => {
                looked.hits += 1;
                list.push(Filled { part, pin: Some(pin) });
            }
            Step::Wait => looked.waits += 1,
            Step::Read(fill) => {
                looked.misses += 1;
                looked.read_bytes += fill.len() as u64;
                let ok = fill.read_from(file).is_ok();
                fill.complete(ok, &done, &mut list);
            }
            Step::Bypass(part) => {
                looked.misses += 1;
                list.push(Filled { part, pin: None });
            }
        }
        while list.is_empty() {
            // Whoever reads the block tells, or drops it, which tells too.
            let _ = poll(&mut [PollFd::new(done.fd(), PollFlags::POLLIN)], PollTimeout::NONE);
            done.take(&mut list)?;
        }
        let pin = list.pop().and_then(|filled| filled.pin);
        if pin.is_some_and(|pin| pin.with(from..from + into.len(), |slice| copy(slice, into))) {
            return Ok(into.len());
        }
        let read = file.read_at(into, offset)?;
        looked.read_bytes += read as u64;
        Ok(read)
    }
}

impl Drop for CachedFile {
    fn drop(&mut self) {
        self.shared.leave(self.id);
    }
}

/// Copies a part of a block.
fn copy(block: VolatileSlice<'_>, into: &mut [u8]) {
    block.copy_to(into);
}
