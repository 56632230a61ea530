//! The layout that [`inflight_log`](crate::inflight_log) and [`response_log`](crate::response_log) share: a head that
//! identifies the log, and entries of one size.
//!
//! | bytes | what |
//! |---|---|
//! | 0, 4, 8, 12 | magic, bytes of a slot, number of entries, an index of the ring's |
//! | 64 + n x stride | entry n |

use core::marker::PhantomData;
use core::sync::atomic::{Ordering, compiler_fence};
use ring_abi::PAGE_SIZE;
use ring_abi::ring::Protocol;
use ring_abi::shm::{Memory, Slot};

const HEAD: usize = 64;

/// The memory does not hold a log of this ring.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[error("{ring}: the log is not of this ring: found {found}, expected {expected} ({what})")]
pub struct LogMismatch {
    /// [`Protocol::NAME`].
    pub ring: &'static str,
    /// The word of the head that differs.
    pub what: &'static str,
    /// The value found.
    pub found: u32,
    /// The value expected.
    pub expected: u32,
}

/// A head, and entries of `STRIDE` bytes, a multiple of 8.
#[derive(Debug)]
pub(crate) struct LogMemory<P, M, const MAGIC: u32> {
    memory: M,
    entries: u32,
    stride: usize,
    protocol: PhantomData<fn() -> P>,
}

/// Bytes of memory, in whole pages, for so many entries.
pub(crate) const fn bytes(entries: u32, stride: usize) -> usize {
    (HEAD + entries as usize * stride).next_multiple_of(PAGE_SIZE)
}

/// Keeps the compiler from moving stores across: a process killed here has done all stores before and none after.
#[inline]
pub(crate) fn compiler_barrier() {
    compiler_fence(Ordering::Release);
}

impl<P: Protocol, M: Memory, const MAGIC: u32> LogMemory<P, M, MAGIC> {
    /// Initialises the memory with `index`; `blank` initialises each entry.
    pub(crate) fn start(
        memory: M,
        entries: u32,
        stride: usize,
        index: u32,
        blank: impl Fn(Slot<'_>),
    ) -> Result<Self, LogMismatch> {
        let log = Self::over(memory, entries, stride)?;
        let head = log.head();
        // Without the magic number a half-initialised log is not recognised.
        head.store32(0, 0);
        compiler_barrier();
        (0..entries).for_each(|entry| blank(log.entry(entry, 0, stride)));
        head.store32(4, P::SLOT as u32);
        head.store32(8, entries);
        head.store32(12, index);
        compiler_barrier();
        head.store32(0, MAGIC);
        Ok(log)
    }

    /// Opens a log that an earlier process wrote.
    pub(crate) fn open(memory: M, entries: u32, stride: usize) -> Result<Self, LogMismatch> {
        let log = Self::over(memory, entries, stride)?;
        let expected = [("magic", 0, MAGIC), ("bytes of a slot", 4, P::SLOT as u32), ("entries", 8, entries)];
        for (what, offset, expected) in expected {
            let found = log.head().load32(offset);
            if found != expected {
                return Err(LogMismatch { ring: P::NAME, what, found, expected });
            }
        }
        Ok(log)
    }

    fn over(memory: M, entries: u32, stride: usize) -> Result<Self, LogMismatch> {
        let found = memory.len();
        let expected = bytes(entries, stride);
        if found < expected {
            return Err(LogMismatch {
                ring: P::NAME,
                what: "bytes",
                found: found as u32,
                expected: expected as u32,
            });
        }
        Ok(Self { memory, entries, stride, protocol: PhantomData })
    }

    pub(crate) fn entries(&self) -> u32 {
        self.entries
    }

    /// The head's index.
    #[inline]
    pub(crate) fn index(&self) -> u32 {
        self.head().load32(12)
    }

    #[inline]
    pub(crate) fn set_index(&self, index: u32) {
        self.head().store32(12, index);
    }

    /// `len` bytes of an entry from `offset` on.
    ///
    /// # Panics
    /// If there is no such entry, or not so much of it.
    #[inline]
    pub(crate) fn entry(&self, entry: u32, offset: usize, len: usize) -> Slot<'_> {
        assert!(entry < self.entries && offset + len <= self.stride, "entry {entry} of {}", self.entries);
        self.bytes_at(HEAD + entry as usize * self.stride + offset, len)
    }

    #[inline]
    fn head(&self) -> Slot<'_> {
        self.bytes_at(0, HEAD)
    }

    #[inline]
    #[allow(unsafe_code)] // Addressed by offset, as the ring's slots are.
    fn bytes_at(&self, offset: usize, len: usize) -> Slot<'_> {
        // SAFETY: the head and every entry are within `bytes(entries, stride)`, which the memory is known to have;
        // head and strides are multiples of 8.
        unsafe { Slot::new(self.memory.base().add(offset), len) }
    }
}
