// Not a core: does I/O or calls a hypervisor.

//! The cache's memory, and what holds a part of it: a pin of a block, and blocks that are being read.
#![allow(unsafe_code)] // The kernel is given addresses of the memory: madvise(2), pread(2).

use super::files::{FileId, Files, Number};
use super::table::{Begun, Table, key};
use crate::engine::done::{Done, lock};
use nix::errno::Errno;
use nix::sys::mman::{MmapAdvise, madvise};
use smallvec::SmallVec;
use std::fmt;
use std::fs::File;
use std::hash::{BuildHasher, RandomState};
use std::io;
use std::ops::Range;
use std::os::fd::AsRawFd;
use std::ptr::NonNull;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex};
use vm_memory::{MmapRegion, VolatileMemory, VolatileSlice};

/// Who waits for a block: a part of an operation of an engine.
#[derive(Debug)]
pub(super) struct Waiter {
    pub(super) to: Arc<Done<Filled>>,
    pub(super) part: Part,
}

/// A part of an operation that lies in one block.
#[derive(Clone, Debug)]
pub(super) struct Part {
    /// The operation's number at its engine.
    pub(super) whole: u32,
    /// The operation's bytes.
    pub(super) bytes: Range<usize>,
    /// The first of them in the block.
    pub(super) from: usize,
}

/// What a waiter is told: the block is there, or, without a pin, it is to be read from the file.
#[derive(Debug)]
pub(super) struct Filled {
    pub(super) part: Part,
    pub(super) pin: Option<Pin>,
}

/// The cache.
pub(super) struct Shared {
    pub(super) block_bits: u32,
    table: Table<Waiter>,
    memory: MmapRegion,
    files: Mutex<Files>,
}

impl fmt::Debug for Shared {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "BaseCache({} bytes)", self.memory.size())
    }
}

impl Shared {
    /// Memory for so many blocks of 2 to the power of `block_bits` bytes; none of it is used yet.
    pub(super) fn new(slots: u32, block_bits: u32) -> io::Result<Shared> {
        let memory = MmapRegion::new((slots as usize) << block_bits).map_err(io::Error::other)?;
        let seed = RandomState::new().hash_one(0);
        Ok(Shared { block_bits, table: Table::new(slots, seed), memory, files: Mutex::default() })
    }

    /// Bytes of a block.
    pub(super) fn block(&self) -> usize {
        1 << self.block_bits
    }

    /// Bytes of the memory.
    pub(super) fn bytes(&self) -> u64 {
        self.memory.size() as u64
    }

    /// Bytes of the memory that have blocks, or are being filled.
    pub(super) fn used(&self) -> u64 {
        u64::from(self.table.taken()) << self.block_bits
    }

    pub(super) fn join(&self, id: FileId) -> Number {
        lock(&self.files).join(id)
    }

    pub(super) fn leave(&self, id: FileId) {
        let number = lock(&self.files).leave(id);
        self.forget(number);
    }

    pub(super) fn bypass(&self, id: FileId) {
        let number = lock(&self.files).bypass(id);
        self.forget(number);
    }

    pub(super) fn end_bypass(&self, id: FileId) {
        lock(&self.files).end_bypass(id);
    }

    fn forget(&self, number: Option<u32>) {
        let Some(number) = number else { return };
        let mut exclusive = Vec::new();
        self.table.forget(number, &mut exclusive);
        self.release(&exclusive);
    }

    /// Gives the memory of exclusive slots back to the kernel, and then the slots to other blocks.
    fn release(&self, slots: &[u32]) {
        for at in slots {
            let start = self.memory.as_ptr().wrapping_add((*at as usize) << self.block_bits);
            if let Some(start) = NonNull::new(start.cast()) {
                // SAFETY: it is this slot's memory, which nobody else has.
                let _ = unsafe { madvise(start, self.block(), MmapAdvise::MADV_DONTNEED) };
            }
        }
        if !slots.is_empty() {
            self.table.give_back(slots);
        }
    }

    /// The memory of a slot.
    fn slice(&self, at: u32) -> Option<VolatileSlice<'_>> {
        self.memory.get_slice((at as usize) << self.block_bits, self.block()).ok()
    }

    /// Calls `act` with bytes of a block that is there, which stay as they are meanwhile; `false` if they are not there.
    #[inline]
    pub(super) fn with(
        &self,
        file: u32,
        block: u64,
        bytes: Range<usize>,
        act: impl FnOnce(VolatileSlice<'_>),
    ) -> bool {
        let Some(at) = key(file, block).and_then(|key| self.table.find(key)) else { return false };
        let pinned = Pinned { shared: self, at };
        pinned.slice(bytes).map(act).is_some()
    }

    /// Looks for a block that was not found.
    pub(super) fn begin(self: &Arc<Shared>, number: &Number, block: u64, waiter: Waiter) -> Begun<Waiter> {
        let file = number.load(Ordering::SeqCst);
        match key(file, block) {
            Some(key) => self.table.begin(key, waiter, || number.load(Ordering::SeqCst) == file),
            None => Begun::Refused(waiter),
        }
    }
}

/// A pin that nobody else is given.
struct Pinned<'s> {
    shared: &'s Shared,
    at: u32,
}

impl<'s> Pinned<'s> {
    /// Bytes of the block, if it has them.
    #[inline]
    fn slice(&self, bytes: Range<usize>) -> Option<VolatileSlice<'s>> {
        let has_them = bytes.start <= bytes.end && bytes.end <= self.shared.table.slot(self.at).valid();
        let slice = self.shared.slice(self.at).filter(|_| has_them)?;
        slice.subslice(bytes.start, bytes.len()).ok()
    }
}

impl Drop for Pinned<'_> {
    #[inline]
    fn drop(&mut self) {
        if self.shared.table.slot(self.at).unpin() {
            self.shared.release(&[self.at]);
        }
    }
}

/// A pin: the bytes of a block stay as they are while this lives.
#[derive(Debug)]
pub(super) struct Pin {
    shared: Arc<Shared>,
    at: u32,
}

impl Pin {
    /// A slot that is pinned already.
    pub(super) fn of(shared: &Arc<Shared>, at: u32) -> Pin {
        Pin { shared: shared.clone(), at }
    }

    /// Calls `act` with bytes of the block; `false` if it has them not.
    pub(super) fn with(&self, bytes: Range<usize>, act: impl FnOnce(VolatileSlice<'_>)) -> bool {
        let pinned = std::mem::ManuallyDrop::new(Pinned { shared: &self.shared, at: self.at });
        pinned.slice(bytes).map(act).is_some()
    }
}

impl Drop for Pin {
    fn drop(&mut self) {
        drop(Pinned { shared: &self.shared, at: self.at });
    }
}

/// Slots that are filled together.
pub(super) type Slots = SmallVec<[u32; 4]>;

/// Adjacent blocks that are being read, into slots that nobody else reads or writes. Dropping it gives them up.
#[derive(Debug)]
pub(super) struct Fill {
    shared: Arc<Shared>,
    slots: Slots,
    /// The first block.
    block: u64,
    /// Bytes of the last block.
    last: usize,
}

impl Fill {
    /// A block with so many bytes, which is read into an exclusive slot.
    pub(super) fn new(shared: &Arc<Shared>, at: u32, block: u64, bytes: usize) -> Fill {
        Fill { shared: shared.clone(), slots: Slots::from_iter([at]), block, last: bytes }
    }

    /// Adds the blocks of another one, if they are the next ones, and all together no more than so many.
    pub(super) fn append(&mut self, other: Fill, most: usize) -> Result<(), Fill> {
        let is_next = self.block + self.slots.len() as u64 == other.block;
        let is_whole = self.last == self.shared.block();
        if !is_next || !is_whole || self.slots.len() + other.slots.len() > most {
            return Err(other);
        }
        let mut other = other;
        self.slots.append(&mut other.slots);
        self.last = other.last;
        Ok(())
    }

    /// The first byte of the file that is read.
    pub(super) fn offset(&self) -> u64 {
        self.block << self.shared.block_bits
    }

    /// Bytes that are read.
    pub(super) fn len(&self) -> usize {
        (self.slots.len().saturating_sub(1) << self.shared.block_bits) + self.last
    }

    pub(super) fn slots(&self) -> &Slots {
        &self.slots
    }

    /// The memory that is read into.
    pub(super) fn slices(&self) -> impl Iterator<Item = VolatileSlice<'_>> {
        let last = self.slots.len() - 1;
        self.slots.iter().enumerate().filter_map(move |(number, at)| {
            let bytes = if number == last { self.last } else { self.shared.block() };
            self.shared.slice(*at)?.subslice(0, bytes).ok()
        })
    }

    /// Reads all of it, by a thread that may wait.
    pub(super) fn read_from(&self, file: &File) -> io::Result<()> {
        let mut offset = self.offset();
        for slice in self.slices() {
            let mut at = 0;
            while at < slice.len() {
                let rest = slice.subslice(at, slice.len() - at).map_err(io::Error::other)?;
                let guard = rest.ptr_guard_mut();
                // SAFETY: the memory is that of the slice, which nobody else has.
                let read = unsafe {
                    libc::pread(file.as_raw_fd(), guard.as_ptr().cast(), rest.len(), offset as libc::off_t)
                };
                match Errno::result(read) {
                    Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
                    Ok(read) => {
                        at += read as usize;
                        offset += read as u64;
                    }
                    Err(Errno::EINTR) => {}
                    Err(error) => return Err(error.into()),
                }
            }
        }
        Ok(())
    }

    /// Ends the reading; `ok` if it succeeded. Those who wait are told, and those who wait at `own` appended to its list.
    pub(super) fn complete(mut self, ok: bool, own: &Arc<Done<Filled>>, list: &mut Vec<Filled>) {
        self.end(ok, |waiter, filled| match Arc::ptr_eq(&waiter, own) {
            true => list.push(filled),
            false => waiter.push(filled),
        });
    }

    fn end(&mut self, ok: bool, mut tell: impl FnMut(Arc<Done<Filled>>, Filled)) {
        let slots = std::mem::take(&mut self.slots);
        for (number, at) in slots.iter().enumerate() {
            let bytes = if number == slots.len() - 1 { self.last } else { self.shared.block() };
            let (waiters, published) = self.shared.table.complete(*at, ok.then_some(bytes as u32));
            for Waiter { to, part } in waiters {
                let pin = published.then(|| Pin::of(&self.shared, *at));
                tell(to, Filled { part, pin });
            }
            if !published {
                self.shared.release(&[*at]);
            }
        }
    }
}

impl Drop for Fill {
    fn drop(&mut self) {
        self.end(false, |waiter, filled| waiter.push(filled));
    }
}

/// Tells those who wait for blocks that are never read: the kernel may write to their slots at any time, which are lost.
pub(super) fn lose(shared: &Shared, slots: &Slots) {
    for at in slots {
        for Waiter { to, part } in shared.lose(*at) {
            to.push(Filled { part, pin: None });
        }
    }
}

impl Shared {
    fn lose(&self, at: u32) -> SmallVec<[Waiter; 1]> {
        self.table.lose(at)
    }
}
