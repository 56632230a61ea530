//! The layout of an arena. It follows from the number of pages alone, so that a hostile peer cannot choose any
//! offset.

use ring_abi::{GrantRef, PAGE_SIZE};

/// Bytes of a version 1 grant entry (grant_table.h:190).
pub(super) const ENTRY_LEN: usize = 8;

/// The layout of an arena: the grant table, then the balloon queue, then the grantable pages.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Layout {
    pages: u32,
}

impl Layout {
    /// The smallest arena, in pages.
    pub const MIN_PAGES: u32 = 64;
    /// The largest arena, in pages: 4 GiB.
    pub const MAX_PAGES: u32 = 1 << 20;
    /// The reserved entry whose frame number is not 0 once the broker retired the arena.
    pub const RETIRED: GrantRef = GrantRef(7);

    /// The layout of an arena of `pages` pages in all; `None` unless that is a power of two within the bounds.
    pub fn new(pages: u32) -> Option<Self> {
        let fits = (Self::MIN_PAGES..=Self::MAX_PAGES).contains(&pages) && pages.is_power_of_two();
        fits.then_some(Self { pages })
    }

    /// Pages in all; frame numbers are below it.
    #[inline]
    pub fn pages(self) -> u32 {
        self.pages
    }

    /// Bytes in all.
    pub fn bytes(self) -> usize {
        self.pages as usize * PAGE_SIZE
    }

    /// Entries of the grant table: two a page, so that every page can be granted while as many entries accept
    /// transfers; at least as many as fill a page.
    #[inline]
    pub fn entries(self) -> u32 {
        (self.pages * 2).max((PAGE_SIZE / ENTRY_LEN) as u32)
    }

    /// Offset of the balloon queue, in bytes.
    pub fn balloon(self) -> usize {
        self.entries() as usize * ENTRY_LEN
    }

    /// Slots of the balloon queue, a power of two: it can hold every page.
    pub fn balloon_slots(self) -> u32 {
        self.pages
    }

    /// The first grantable frame.
    #[inline]
    pub fn first(self) -> u32 {
        let queue = (self.balloon_slots() as usize * size_of::<u32>()).div_ceil(PAGE_SIZE);
        (self.balloon() / PAGE_SIZE + 1 + queue) as u32
    }

    /// Whether a frame number, possibly of a hostile peer, is a grantable page.
    #[inline]
    pub fn grantable(self, frame: u32) -> bool {
        (self.first()..self.pages).contains(&frame)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn layout_of_any_size_has_disjoint_parts_and_mostly_grantable_pages() {
        for shift in 6..=20 {
            let layout = Layout::new(1 << shift).unwrap();
            let queue = layout.balloon() + PAGE_SIZE + layout.balloon_slots() as usize * 4;
            assert!(layout.first() as usize * PAGE_SIZE >= queue);
            assert!(layout.first() < layout.pages() / 8, "{layout:?} has too few grantable pages");
            assert_eq!(layout.balloon() % PAGE_SIZE, 0);
        }
    }

    #[test]
    fn layout_of_an_invalid_size_is_none() {
        for pages in [0, 1, 63, 65, 1000, (1 << 20) + 1, 1 << 21, u32::MAX] {
            assert_eq!(Layout::new(pages), None, "{pages}");
        }
    }
}
