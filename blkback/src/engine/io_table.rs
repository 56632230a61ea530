// Not a core: does I/O or calls a hypervisor.

//! The operations that an engine may hold at once, and the memory of each, which is freed or used again only when the
//! engine has handed its token back.
#![allow(unsafe_code)] // Engines read the slots while the table exists beside them.

use std::fmt;
use std::marker::PhantomData;
use std::ops::Range;
use std::ptr::{self, NonNull};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use libc::iovec;
use ring_abi::blkif::{MAX_INDIRECT_PAGES, SEGMENTS_PER_INDIRECT_PAGE};
use vm_memory::VolatileSlice;

use super::io::{IoRequest, IoSlot, Iovecs, give_back, part};
use crate::request::{Operation, Tag};

/// A slot for each operation, with the `M` that owns its memory.
///
/// A slot is pinned while its token is out: its memory cannot be reached then. A table that is dropped while tokens are out
/// leaks their slots and memory; a token may outlive it for ever, and so must what `M` refers to.
///
/// ```
/// use blkback::engine::{Disk, DiskInfo, IoTable, Operation, RamDisk, Tag};
/// use vm_memory::{Bytes, MmapRegion, VolatileMemory};
///
/// # fn main() -> std::io::Result<()> {
/// let disk = RamDisk::new(DiskInfo::new(2048))?;
/// let mut engine = disk.engine(32)?;
/// let mut table = IoTable::new(32, || None::<MmapRegion>);
/// *table.memory_mut(Tag(0)) = Some(MmapRegion::new(4096).map_err(std::io::Error::other)?);
/// let request = table
///     .start(Tag(0), Operation::Read, 8, |memory, slices| {
///         memory.as_ref().is_some_and(|region| slices.push(region.as_volatile_slice()))
///     })
///     .expect("one slice fits");
/// engine.submit(&mut vec![request]);
/// let mut completions = Vec::new();
/// engine.poll(&mut completions)?;
/// for completion in completions {
///     completion.result?;
///     assert_eq!(table.finish(completion.request), Tag(0));
/// }
/// # Ok(())
/// # }
/// ```
pub struct IoTable<M> {
    /// `pinned.len()` slots, allocated as a boxed slice. Reached by pointer only: a reference to all of them would be
    /// one to slots that engines read.
    slots: NonNull<Slot<M>>,
    /// By tag: the token is out.
    pinned: Box<[bool]>,
    /// How many are pinned.
    out: usize,
    /// A token was dropped since the slots of such tokens were last taken back.
    any_dropped: Arc<AtomicBool>,
    memory: PhantomData<M>,
}

// SAFETY: the table owns its slots as a box would.
unsafe impl<M: Send> Send for IoTable<M> {}

struct Slot<M> {
    io: IoSlot,
    memory: M,
}

/// Slices of an operation that are not adjacent, at most.
const MAX_SLICES: usize = MAX_INDIRECT_PAGES * SEGMENTS_PER_INDIRECT_PAGE;

/// Collects the memory of an operation, in the order of the disk's bytes.
pub struct Slices<'t, 'm> {
    iovecs: &'t mut Iovecs,
    bytes: usize,
    memory: PhantomData<&'m mut [u8]>,
}

impl<'m> Slices<'_, 'm> {
    /// Sets the length in bytes of an operation that has no memory, as a discard.
    pub fn cover(&mut self, bytes: usize) {
        self.bytes = bytes;
    }

    /// Appends memory; `false` if there are too many slices already.
    #[inline]
    pub fn push(&mut self, slice: VolatileSlice<'m>) -> bool {
        let base = slice.ptr_guard_mut().as_ptr();
        // An entry of several slices is accessed by the address of the first: `IoRequest::slices`.
        base.expose_provenance();
        let len = slice.len();
        self.bytes += len;
        if len == 0 {
            return true;
        }
        if let Some(last) = self.iovecs.last_mut()
            && last.iov_base.cast::<u8>().wrapping_add(last.iov_len) == base
        {
            last.iov_len += len;
            return true;
        }
        let has_room = self.iovecs.len() < MAX_SLICES;
        if has_room {
            self.iovecs.push(iovec { iov_base: base.cast(), iov_len: len });
        }
        has_room
    }
}

impl<M: Send + 'static> IoTable<M> {
    /// A table of `depth` slots, each with a memory of its own.
    pub fn new(depth: usize, mut memory: impl FnMut() -> M) -> IoTable<M> {
        let any_dropped = Arc::<AtomicBool>::default();
        let slot =
            |number| Slot { io: IoSlot::new(Tag(number as u32), any_dropped.clone()), memory: memory() };
        let slots: Box<[Slot<M>]> = (0..depth).map(slot).collect();
        // SAFETY: a box is not null.
        let slots = unsafe { NonNull::new_unchecked(Box::into_raw(slots).cast()) };
        IoTable { slots, pinned: vec![false; depth].into(), out: 0, any_dropped, memory: PhantomData }
    }

    /// Slots.
    pub fn depth(&self) -> usize {
        self.pinned.len()
    }

    /// Slots whose tokens are out.
    #[inline]
    pub fn pinned(&self) -> usize {
        self.out
    }

    /// The slot, which nobody else reads or writes.
    ///
    /// # Panics
    /// If there is no such slot, or its token is out.
    #[inline]
    fn unpinned(&self, tag: Tag) -> *mut Slot<M> {
        assert!(!self.pinned[tag.0 as usize], "{tag:?} is in the hands of an engine");
        // SAFETY: there are as many slots as flags.
        unsafe { self.slots.as_ptr().add(tag.0 as usize) }
    }

    /// The memory of a slot whose token is not out.
    ///
    /// # Panics
    /// If it is, or there is no such slot.
    #[inline]
    pub fn memory(&self, tag: Tag) -> &M {
        // SAFETY: a slot that is not pinned belongs to `self`, which is borrowed.
        unsafe { &(*self.unpinned(tag)).memory }
    }

    /// As [`IoTable::memory`], to be changed.
    ///
    /// # Panics
    /// As [`IoTable::memory`].
    #[inline]
    pub fn memory_mut(&mut self, tag: Tag) -> &mut M {
        // SAFETY: as in `memory`; borrowed mutably.
        unsafe { &mut (*self.unpinned(tag)).memory }
    }

    /// Makes the token of an operation. `collect` appends the slices of the slot's memory that it is to read or write, and
    /// returns `false` if they cannot be had.
    ///
    /// # Panics
    /// As [`IoTable::memory`].
    #[inline]
    pub fn start(
        &mut self,
        tag: Tag,
        operation: Operation,
        sector: u64,
        collect: impl for<'m> FnOnce(&'m mut M, &mut Slices<'_, 'm>) -> bool,
    ) -> Option<IoRequest> {
        // SAFETY: a slot that is not pinned belongs to `self`, which is borrowed mutably.
        let Slot { io, memory } = unsafe { &mut *self.unpinned(tag) };
        io.iovecs.clear();
        let mut slices = Slices { iovecs: &mut io.iovecs, bytes: 0, memory: PhantomData };
        if !collect(memory, &mut slices) {
            return None;
        }
        io.bytes = slices.bytes;
        io.operation = operation;
        io.sector = sector;
        *io.dropped.get_mut() = false;
        self.pinned[tag.0 as usize] = true;
        self.out += 1;
        // SAFETY: in the table. From here on it is pinned: neither slot nor memory is touched or freed until `finish`
        // has taken the token back or `reclaim` has seen that it was dropped. Slices borrow from the memory for any
        // lifetime, so that they are valid for as long as it is left alone.
        Some(unsafe {
            IoRequest::new(NonNull::new_unchecked(&raw mut (*self.slots.as_ptr().add(tag.0 as usize)).io))
        })
    }

    /// Makes the token of a part of another operation: of its bytes in `range`, at a sector of its own.
    ///
    /// # Safety
    /// The other token lives for as long as this one.
    ///
    /// # Panics
    /// As [`IoTable::memory`].
    #[inline]
    pub(super) unsafe fn start_part(
        &mut self,
        tag: Tag,
        whole: &IoRequest,
        range: Range<usize>,
        sector: u64,
    ) -> IoRequest {
        // SAFETY: a slot that is not pinned belongs to `self`, which is borrowed mutably.
        let Slot { io, .. } = unsafe { &mut *self.unpinned(tag) };
        part(whole.iovecs(), range.clone(), &mut io.iovecs);
        io.bytes = range.len();
        io.operation = whole.operation();
        io.sector = sector;
        *io.dropped.get_mut() = false;
        self.pinned[tag.0 as usize] = true;
        self.out += 1;
        // SAFETY: as in `start`; the memory is that of the other operation, and is valid by this function's contract.
        unsafe {
            IoRequest::new(NonNull::new_unchecked(&raw mut (*self.slots.as_ptr().add(tag.0 as usize)).io))
        }
    }

    /// Takes a token back, whose memory is the table's again.
    ///
    /// # Panics
    /// If it is another table's.
    #[inline]
    pub fn finish(&mut self, request: IoRequest) -> Tag {
        let tag = request.tag();
        let theirs = request.into_slot();
        let ours = self.pinned.get(tag.0 as usize).is_some_and(|pinned| {
            // SAFETY: there are as many slots as flags.
            *pinned
                && ptr::eq(theirs.as_ptr(), unsafe {
                    &raw const (*self.slots.as_ptr().add(tag.0 as usize)).io
                })
        });
        assert!(ours, "{tag:?} is of another table");
        self.pinned[tag.0 as usize] = false;
        self.out -= 1;
        // SAFETY: ours, and no longer pinned: it belongs to `self`, which is borrowed mutably.
        give_back(unsafe { &mut (*self.slots.as_ptr().add(tag.0 as usize)).io.iovecs });
        tag
    }

    /// Takes back the slots whose tokens were dropped, and appends their tags to `dropped`.
    #[inline]
    pub fn reclaim(&mut self, dropped: &mut Vec<Tag>) {
        if self.any_dropped.load(Ordering::Relaxed) {
            self.take_dropped(|tag| dropped.push(tag));
        }
    }
}

impl<M> IoTable<M> {
    #[cold]
    fn take_dropped(&mut self, mut each: impl FnMut(Tag)) {
        // Before the slots are read: a token that is dropped meanwhile is seen now or sets it again.
        self.any_dropped.swap(false, Ordering::Acquire);
        for (number, pinned) in self.pinned.iter_mut().enumerate().filter(|(_, pinned)| **pinned) {
            // SAFETY: there are as many slots as flags; engines only read the slot, but for this atomic.
            let dropped: &AtomicBool = unsafe { &(*self.slots.as_ptr().add(number)).io.dropped };
            if dropped.load(Ordering::Acquire) {
                *pinned = false;
                self.out -= 1;
                // SAFETY: no longer pinned: it belongs to `self`, which is borrowed mutably; the reference above is not used again.
                give_back(unsafe { &mut (*self.slots.as_ptr().add(number)).io.iovecs });
                each(Tag(number as u32));
            }
        }
    }
}

impl<M> Drop for IoTable<M> {
    fn drop(&mut self) {
        self.take_dropped(|_| ());
        let all = ptr::slice_from_raw_parts_mut(self.slots.as_ptr(), self.pinned.len());
        if self.out == 0 {
            // SAFETY: allocated as a boxed slice of this length, of which no token is out.
            drop(unsafe { Box::from_raw(all) });
            return;
        }
        tracing::error!(
            operations = self.out,
            "leaking the memory of operations that an engine has not handed back"
        );
        for number in (0..self.pinned.len()).filter(|number| !self.pinned[*number]) {
            // SAFETY: not pinned, and never reached again: the slots themselves are leaked.
            unsafe { ptr::drop_in_place(&raw mut (*self.slots.as_ptr().add(number)).memory) };
        }
    }
}

impl<M> fmt::Debug for IoTable<M> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "IoTable({} slots, {} pinned)", self.pinned.len(), self.out)
    }
}

#[cfg(test)]
mod tests;
