// Not a core: does I/O or calls a hypervisor.

//! One disk operation as an engine holds it: a token, and the memory that stays valid while the token lives.
#![allow(unsafe_code)] // A token is a pointer into the table that lent it.

use std::fmt;
use std::io;
use std::mem::ManuallyDrop;
use std::ops::Range;
use std::ptr::{self, NonNull};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use libc::iovec;
use ring_abi::blkif::MAX_SEGMENTS;
use smallvec::SmallVec;
use vm_memory::VolatileSlice;

use crate::request::{Operation, Tag};

/// The memory of an operation: adjacent slices are one entry. That of indirect requests is allocated.
pub(super) type Iovecs = SmallVec<[iovec; MAX_SEGMENTS]>;

/// Entries that a system call takes (`UIO_MAXIOV`); an operation with more is carried out in parts.
pub(super) const IOVECS_PER_CALL: usize = 1024;

/// Gives memory back that an operation with many entries has allocated.
#[inline]
pub(super) fn give_back(iovecs: &mut Iovecs) {
    if iovecs.spilled() {
        *iovecs = Iovecs::new();
    }
}

/// The memory from byte `from` on.
pub(super) fn skip(iovecs: &[iovec], from: usize, rest: &mut Iovecs) {
    rest.clear();
    let mut skip = from;
    for one in iovecs {
        let skipped = skip.min(one.iov_len);
        skip -= skipped;
        if skipped < one.iov_len {
            let iov_base = one.iov_base.cast::<u8>().wrapping_add(skipped).cast();
            rest.push(iovec { iov_base, iov_len: one.iov_len - skipped });
        }
    }
}

/// The memory of the bytes in `range`.
#[inline]
pub(super) fn part(iovecs: &[iovec], range: Range<usize>, part: &mut Iovecs) {
    part.clear();
    let mut at = 0;
    for one in iovecs {
        let (start, end) = (range.start.max(at), range.end.min(at + one.iov_len));
        if start < end {
            let iov_base = one.iov_base.cast::<u8>().wrapping_add(start - at).cast();
            part.push(iovec { iov_base, iov_len: end - start });
        }
        at += one.iov_len;
    }
}

/// What an engine reads of an operation. Nobody writes to it while its token lives.
pub(super) struct IoSlot {
    pub(super) tag: Tag,
    pub(super) operation: Operation,
    pub(super) sector: u64,
    pub(super) bytes: usize,
    pub(super) iovecs: Iovecs,
    /// The token was dropped instead of being handed back: the last access to the slot by way of it.
    pub(super) dropped: AtomicBool,
    /// Set after that for the whole table.
    pub(super) any_dropped: Arc<AtomicBool>,
}

impl IoSlot {
    pub(super) fn new(tag: Tag, any_dropped: Arc<AtomicBool>) -> IoSlot {
        IoSlot {
            tag,
            operation: Operation::Flush,
            sector: 0,
            bytes: 0,
            iovecs: Iovecs::new(),
            dropped: AtomicBool::new(false),
            any_dropped,
        }
    }
}

/// One operation, in the hands of an engine from [`submit`](super::Engine::submit) until it hands it back in a
/// [`Completion`].
///
/// It is a token: while it lives its slot of the [`IoTable`](super::IoTable) is not used again, and its memory stays
/// mapped and is nobody else's. An engine that drops it gives up the operation, which fails with the next poll; an
/// engine that can neither wait for its I/O nor cancel it [forgets](std::mem::forget) the token, and the memory is
/// never freed.
pub struct IoRequest {
    slot: NonNull<IoSlot>,
}

// SAFETY: the slot is only read by way of a token, but for its atomic; a table lends tokens only for memory that is
// `Send`, and does not access it meanwhile.
unsafe impl Send for IoRequest {}

/// An operation that an engine hands back.
#[derive(Debug)]
pub struct Completion {
    /// The operation.
    pub request: IoRequest,
    /// `Ok` if all bytes were read or written.
    pub result: io::Result<()>,
}

impl IoRequest {
    /// # Safety
    /// Until the token is handed back, has set [`IoSlot::dropped`], or for ever: the slot stays where it is and is
    /// not written to, and the memory of its iovecs stays valid, and is accessed by nobody but the owner of the token
    /// and the domain that granted it.
    pub(super) unsafe fn new(slot: NonNull<IoSlot>) -> IoRequest {
        IoRequest { slot }
    }

    /// Ends the token's life without dropping it.
    pub(super) fn into_slot(self) -> NonNull<IoSlot> {
        ManuallyDrop::new(self).slot
    }

    #[inline]
    fn slot(&self) -> &IoSlot {
        // SAFETY: by the contract of `new`.
        unsafe { self.slot.as_ref() }
    }

    /// The operation's number: below the engine's depth, and that of no other operation of the same table.
    #[inline]
    pub fn tag(&self) -> Tag {
        self.slot().tag
    }

    /// What to do.
    #[inline]
    pub fn operation(&self) -> Operation {
        self.slot().operation
    }

    /// First sector, in units of 512 bytes.
    #[inline]
    pub fn sector(&self) -> u64 {
        self.slot().sector
    }

    /// Bytes to read, write or discard.
    #[inline]
    pub fn len(&self) -> usize {
        self.slot().bytes
    }

    /// Whether there is nothing to read, write or discard.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The memory, in the order of the disk's bytes: written to by a read; only read by a write, whose pages may be
    /// mapped read-only. The frontend may change it at any time.
    #[inline]
    pub fn slices(&self) -> impl Iterator<Item = VolatileSlice<'_>> {
        self.iovecs().iter().map(|v| {
            // Not the pointer itself, which may be that of the first of several adjacent slices.
            let base = ptr::with_exposed_provenance_mut(v.iov_base.addr());
            // SAFETY: the memory is valid for as long as the token is borrowed, by the contract of `new`.
            unsafe { VolatileSlice::new(base, v.iov_len) }
        })
    }

    /// The memory as system calls take it. The array stays where it is while the token lives.
    #[inline]
    pub fn iovecs(&self) -> &[iovec] {
        &self.slot().iovecs
    }
}

impl Drop for IoRequest {
    fn drop(&mut self) {
        let any_dropped = self.slot().any_dropped.clone();
        self.slot().dropped.store(true, Ordering::Release);
        any_dropped.store(true, Ordering::Release);
    }
}

impl fmt::Debug for IoRequest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let IoSlot { tag, operation, sector, bytes, .. } = self.slot();
        write!(f, "IoRequest({tag:?}, {operation:?}, sector {sector}, {bytes} bytes)")
    }
}
