//! A ring's memory, addressed by the slots' indexes.
#![allow(unsafe_code)] // Slots are addressed by index into shared memory.

use core::marker::PhantomData;

use super::{BadMemory, MAX_PAGES, Protocol, slots};
use crate::PAGE_SIZE;
use crate::shm::{HEADER_LEN, Memory, Slot};

/// A ring's memory, and the position of its slots.
#[derive(Debug)]
pub(super) struct Slots<P, M> {
    pub(super) memory: M,
    mask: u32,
    protocol: PhantomData<fn() -> P>,
}

impl<P: Protocol, M: Memory> Slots<P, M> {
    #[inline(always)]
    pub(super) fn new(memory: M) -> Result<Self, BadMemory> {
        let len = memory.len();
        let pages = len / PAGE_SIZE;
        if !len.is_multiple_of(PAGE_SIZE) || !pages.is_power_of_two() || pages > MAX_PAGES {
            return Err(BadMemory { ring: P::NAME, len });
        }
        Ok(Self { mask: slots(P::SLOT, len) - 1, memory, protocol: PhantomData })
    }

    #[inline(always)]
    pub(super) fn size(&self) -> u32 {
        self.mask + 1
    }

    #[inline(always)]
    pub(super) fn at(&self, index: u32) -> Slot<'_> {
        let offset = HEADER_LEN + (index & self.mask) as usize * P::SLOT;
        // SAFETY: the masked index is below `slots(SLOT, len)`, so that the slot lies inside the memory, which
        // `self` borrows for the slot's life.
        unsafe { Slot::within(self.memory.base(), offset, P::SLOT) }
    }

    /// Starts to fetch `count` slots from `index` on.
    #[inline]
    pub(super) fn prefetch(&self, index: u32, count: u32) {
        for ahead in 0..count {
            self.at(index.wrapping_add(ahead)).prefetch_for_write();
        }
    }
}
