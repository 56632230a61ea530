//! Memory and scripts for tests, harnesses and fuzz targets; behind the feature `testing`, which needs an allocator.
//!
//! [`Pages`] is ring memory on the heap that two ends of a ring, and a hostile peer, hold at the same time.
//! [`Script`] turns a fuzzer's bytes into the peer's decisions.
//!
//! ```
//! use ring_abi::blkif::{Request, X86_64};
//! use ring_abi::ring::{Back, Front};
//! use ring_abi::testing::{Pages, REQ_PROD};
//! use std::sync::atomic::Ordering::Relaxed;
//!
//! let pages = Pages::new(1);
//! let mut front = Front::<X86_64, _>::init(pages.clone()).unwrap();
//! let mut back = Back::<X86_64, _>::attach(pages.clone()).unwrap();
//! assert!(front.push(&Request::default()) && front.commit().wanted());
//! assert!(back.pop().unwrap().is_some());
//! // A hostile frontend publishes more requests than the ring has slots.
//! pages.word(REQ_PROD).store(1000, Relaxed);
//! assert!(back.pop().is_err());
//! ```
#![allow(unsafe_code)] // Implements `Memory`, by pages on the heap.

extern crate alloc;

use crate::PAGE_SIZE;
use crate::shm::{HEADER_LEN, Memory, Slot};
use alloc::sync::Arc;
use alloc::vec;
use alloc::vec::Vec;
use core::marker::PhantomData;
use core::ptr::NonNull;
use core::sync::atomic::{AtomicBool, AtomicU32, Ordering};

/// Offset in bytes of `req_prod` in a ring's first page (ring.h:157).
pub const REQ_PROD: usize = 0;
/// Offset in bytes of `req_event`.
pub const REQ_EVENT: usize = 4;
/// Offset in bytes of `rsp_prod`.
pub const RSP_PROD: usize = 8;
/// Offset in bytes of `rsp_event`.
pub const RSP_EVENT: usize = 12;

#[derive(Debug)]
#[repr(C, align(4096))]
struct Page([AtomicU32; PAGE_SIZE / 4]);

/// Zeroed pages on the heap, shared by all clones.
#[derive(Clone, Debug)]
pub struct Pages(Arc<[Page]>);

// SAFETY: page-aligned memory of atomics, which lives as long as any clone.
unsafe impl Memory for Pages {
    fn base(&self) -> NonNull<u8> {
        NonNull::from(&*self.0).cast()
    }
    fn len(&self) -> usize {
        self.0.len() * PAGE_SIZE
    }
}

impl Pages {
    /// So many pages of zeros, at least one.
    pub fn new(pages: usize) -> Self {
        let pages = pages.max(1);
        Self((0..pages).map(|_| Page([const { AtomicU32::new(0) }; PAGE_SIZE / 4])).collect())
    }

    /// As many pages as hold so many bytes.
    pub fn for_bytes(bytes: usize) -> Self {
        Self::new(bytes.div_ceil(PAGE_SIZE))
    }

    /// All pages as one slot.
    pub fn words(&self) -> Slot<'_> {
        words(self)
    }

    /// The word at an offset in bytes.
    ///
    /// # Panics
    /// If the offset is not in these pages, or no multiple of four.
    pub fn word(&self, offset: usize) -> &AtomicU32 {
        assert!(offset.is_multiple_of(4), "{offset} is no multiple of four");
        &self.0[offset / PAGE_SIZE].0[offset % PAGE_SIZE / 4]
    }

    /// A word of a slot, in a ring that has as many slots of this length as Xen's macros give it.
    pub fn slot_word(&self, slot_len: usize, index: u32, word: usize) -> &AtomicU32 {
        let slots = 1 << ((self.len() - HEADER_LEN) / slot_len).ilog2();
        self.word(HEADER_LEN + index as usize % slots * slot_len + 4 * word)
    }

    /// A copy of all bytes.
    pub fn bytes(&self) -> Vec<u8> {
        let mut bytes = vec![0; self.len()];
        self.words().load_bytes(0, &mut bytes);
        bytes
    }

    /// The first page, borrowed, by its address alone: a ring's half over this has no reference count to drop and
    /// knows its size, so that the compiler can keep the half's state in registers, as it does with C's.
    pub fn first(&self) -> PageRef<'_> {
        PageRef { base: self.base(), pages: PhantomData }
    }
}

/// The first page of borrowed [`Pages`].
#[derive(Clone, Copy, Debug)]
pub struct PageRef<'a> {
    base: NonNull<u8>,
    pages: PhantomData<&'a Pages>,
}

// SAFETY: as `Pages`, which is both `Send` and `Sync`; the memory is reached as atomic words only.
unsafe impl Send for PageRef<'_> {}
// SAFETY: as above.
unsafe impl Sync for PageRef<'_> {}

// SAFETY: as `Pages`, which outlives the borrow.
unsafe impl Memory for PageRef<'_> {
    #[inline(always)]
    fn base(&self) -> NonNull<u8> {
        self.base
    }
    #[inline(always)]
    fn len(&self) -> usize {
        PAGE_SIZE
    }
}

// SAFETY: as the memory that is shared, which lives as long as any clone.
unsafe impl<M: Memory> Memory for Arc<M> {
    fn base(&self) -> NonNull<u8> {
        (**self).base()
    }
    fn len(&self) -> usize {
        (**self).len()
    }
}

/// All of a ring's memory as one slot, to be read and written by words: what a hostile peer does to it.
pub fn words(memory: &impl Memory) -> Slot<'_> {
    // SAFETY: `Memory` promises so many bytes, aligned to 8, for as long as it lives.
    unsafe { Slot::new(memory.base(), memory.len()) }
}

/// Sets a flag that stops other threads when it is dropped, also if the test panics: `std::thread::scope` would
/// otherwise wait for them forever.
#[derive(Debug)]
pub struct StopOnDrop<'a>(pub &'a AtomicBool);

impl Drop for StopOnDrop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// Bytes that decide, one after the other, what a harness does; zeros after their end.
#[derive(Clone, Debug)]
pub struct Script<'a>(&'a [u8]);

impl<'a> Script<'a> {
    /// A script of these bytes.
    pub fn new(bytes: &'a [u8]) -> Self {
        Self(bytes)
    }

    /// The next byte, or `None` at the end.
    pub fn step(&mut self) -> Option<u8> {
        let (first, rest) = self.0.split_first()?;
        self.0 = rest;
        Some(*first)
    }

    /// The next byte, or zero.
    pub fn byte(&mut self) -> u8 {
        self.step().unwrap_or(0)
    }

    /// The next four bytes, as a little-endian number.
    pub fn word(&mut self) -> u32 {
        u32::from_le_bytes([(); 4].map(|()| self.byte()))
    }

    /// The next bytes: at most so many, fewer at the end.
    pub fn bytes(&mut self, most: usize) -> &'a [u8] {
        let (bytes, rest) = self.0.split_at(most.min(self.0.len()));
        self.0 = rest;
        bytes
    }

    /// The bytes that were not read yet.
    pub fn rest(&self) -> &'a [u8] {
        self.0
    }

    /// Whether all bytes were read.
    pub fn is_over(&self) -> bool {
        self.0.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use core::sync::atomic::Ordering::Relaxed;

    #[test]
    fn pages_are_aligned_and_shared_by_clones() {
        let pages = Pages::for_bytes(PAGE_SIZE + 1);
        let other = pages.clone();
        assert_eq!(pages.len(), 2 * PAGE_SIZE);
        assert!(pages.base().addr().get().is_multiple_of(PAGE_SIZE));
        other.words().store32(PAGE_SIZE + 8, 0x0403_0201);
        assert_eq!(pages.word(PAGE_SIZE + 8).load(Relaxed), 0x0403_0201);
        assert_eq!(pages.bytes()[PAGE_SIZE + 8..][..4], [1, 2, 3, 4]);
        other.words().store32(8, 5);
        assert_eq!((words(&pages.first()).load32(8), pages.first().len()), (5, PAGE_SIZE));
    }

    #[test]
    fn slot_words_wrap_with_the_ring() {
        let pages = Pages::new(1);
        pages.slot_word(112, 33, 1).store(7, Relaxed);
        assert_eq!(pages.words().load32(HEADER_LEN + 112 + 4), 7);
    }

    #[test]
    fn exhausted_script_gives_zeros() {
        let mut script = Script::new(&[1, 2, 3, 4, 5]);
        assert_eq!((script.step(), script.word(), script.is_over()), (Some(1), 0x0504_0302, true));
        assert_eq!((script.step(), script.byte(), script.bytes(3)), (None, 0, &[][..]));
    }
}
