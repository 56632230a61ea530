//! The layout that [`inflight_log`](crate::inflight_log) and [`response_log`](crate::response_log) share: a head that
//! identifies the log, and entries of one size.
//!
//! | bytes | what |
//! |---|---|
//! | 0, 4, 8, 12 | magic, bytes of a slot, number of entries, an index of the ring's |
//! | 16, 20 | version, bytes of an entry |
//! | 64 + n x stride | entry n |
//!
//! A log of an unknown version is refused, as its bytes may mean something else. A log without a version, where there is 0,
//! was written by a program from before logs had one: its layout is that of version 1, and it has no bytes of an entry.
//! Such a program in turn reads no version. A version with another layout therefore has another magic, too.

use core::marker::PhantomData;
use core::sync::atomic::{Ordering, compiler_fence};
use ring_abi::PAGE_SIZE;
use ring_abi::ring::Protocol;
use ring_abi::shm::{Memory, Slot};

const HEAD: usize = 64;

/// Offsets of the head's words.
const MAGIC: usize = 0;
const SLOT: usize = 4;
const ENTRIES: usize = 8;
const INDEX: usize = 12;
const VERSION: usize = 16;
const ENTRY_BYTES: usize = 20;

/// What makes a log of one kind.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Format {
    pub(crate) magic: u32,
    /// The version that is written; logs of earlier ones from 1 on are read, and have the same layout.
    pub(crate) version: u32,
    /// Bytes of an entry, a multiple of 8.
    pub(crate) stride: usize,
}

/// The memory does not hold a log of this ring, of the version that this program writes.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[error("{ring}: the log is of another ring or version: {what}: found {found}, expected {expected}")]
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

/// A head and entries.
#[derive(Debug)]
pub(crate) struct LogMemory<P, M> {
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

impl<P: Protocol, M: Memory> LogMemory<P, M> {
    /// Initialises the memory with `index`; `blank` initialises each entry.
    pub(crate) fn start(
        memory: M,
        entries: u32,
        format: Format,
        index: u32,
        blank: impl Fn(Slot<'_>),
    ) -> Result<Self, LogMismatch> {
        let log = Self::over(memory, entries, format.stride)?;
        let head = log.head();
        // Without the magic number a half-initialised log is not recognised.
        head.store32(MAGIC, 0);
        compiler_barrier();
        (0..entries).for_each(|entry| blank(log.entry(entry, 0, format.stride)));
        head.store32(SLOT, P::SLOT as u32);
        head.store32(ENTRIES, entries);
        head.store32(INDEX, index);
        head.store32(VERSION, format.version);
        head.store32(ENTRY_BYTES, format.stride as u32);
        compiler_barrier();
        head.store32(MAGIC, format.magic);
        Ok(log)
    }

    /// Opens a log that an earlier process wrote; the second value is its version.
    pub(crate) fn open(memory: M, entries: u32, format: Format) -> Result<(Self, u32), LogMismatch> {
        let log = Self::over(memory, entries, format.stride)?;
        log.expect("magic", log.head().load32(MAGIC), format.magic)?;
        let version = log.head().load32(VERSION);
        if version > 0 {
            log.expect("version", version, version.min(format.version))?;
            log.expect("bytes of an entry", log.head().load32(ENTRY_BYTES), format.stride as u32)?;
        }
        log.expect("bytes of a slot", log.head().load32(SLOT), P::SLOT as u32)?;
        log.expect("entries", log.head().load32(ENTRIES), entries)?;
        Ok((log, version.max(1)))
    }

    /// Makes the log one of this version, after its entries are.
    pub(crate) fn upgrade(&self, format: Format) {
        self.head().store32(ENTRY_BYTES, format.stride as u32);
        compiler_barrier();
        self.head().store32(VERSION, format.version);
        compiler_barrier();
    }

    fn expect(&self, what: &'static str, found: u32, expected: u32) -> Result<(), LogMismatch> {
        match found == expected {
            true => Ok(()),
            false => Err(LogMismatch { ring: P::NAME, what, found, expected }),
        }
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
        self.head().load32(INDEX)
    }

    #[inline]
    pub(crate) fn set_index(&self, index: u32) {
        self.head().store32(INDEX, index);
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
