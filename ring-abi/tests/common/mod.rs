//! Memory for rings, as tests have it: pages on the heap, shared by clones.
#![allow(unsafe_code)] // Raw pages.
#![allow(dead_code)] // Each test uses a part.

pub(crate) mod hostile;

use ring_abi::PAGE_SIZE;
use ring_abi::shm::{Memory, Slot};
use std::alloc::{Layout, alloc_zeroed, dealloc};
use std::ptr::NonNull;
use std::sync::Arc;

#[derive(Debug)]
struct Bytes {
    base: NonNull<u8>,
    layout: Layout,
}

impl Drop for Bytes {
    fn drop(&mut self) {
        // SAFETY: allocated with this layout, freed only here.
        unsafe { dealloc(self.base.as_ptr(), self.layout) }
    }
}

/// Pages of zeroes, shared by clones.
#[derive(Clone, Debug)]
pub(crate) struct Pages(Arc<Bytes>);

// SAFETY: reached only through atomic words, or while no other thread has a clone.
unsafe impl Send for Pages {}
// SAFETY: as above.
unsafe impl Sync for Pages {}

impl Pages {
    pub(crate) fn new(pages: usize) -> Self {
        let layout = Layout::from_size_align(pages * PAGE_SIZE, PAGE_SIZE).unwrap();
        // SAFETY: the layout's size is not zero.
        let base = NonNull::new(unsafe { alloc_zeroed(layout) }).unwrap();
        #[allow(clippy::arc_with_non_send_sync)] // `Pages` says why it is both.
        Self(Arc::new(Bytes { base, layout }))
    }

    /// All of it as one slot.
    pub(crate) fn slot(&self) -> Slot<'_> {
        // SAFETY: the pages live as long as `self`.
        unsafe { Slot::new(self.base(), self.len()) }
    }

    /// A copy of the bytes.
    pub(crate) fn bytes(&self) -> Vec<u8> {
        let mut bytes = vec![0; self.len()];
        self.slot().load_bytes(0, &mut bytes);
        bytes
    }
}

// SAFETY: as many bytes as allocated, page-aligned, for as long as a clone lives.
unsafe impl Memory for Pages {
    fn base(&self) -> NonNull<u8> {
        self.0.base
    }
    fn len(&self) -> usize {
        self.0.layout.size()
    }
}

/// A generator of numbers (SplitMix64): the same every run.
#[derive(Clone, Debug)]
pub(crate) struct Numbers(pub(crate) u64);

impl Numbers {
    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ z >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ z >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ z >> 31
    }
    pub(crate) fn below(&mut self, limit: u64) -> u64 {
        self.next() % limit
    }
}
