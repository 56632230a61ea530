//! Where things lie in an arena: all of it follows from the number of pages, so that a peer cannot lie about it.

use ring_abi::{GrantRef, PAGE_SIZE};

/// Bytes of a version 1 grant entry (grant_table.h:190).
pub(super) const ENTRY_LEN: usize = 8;

/// The shape of an arena: the grant table, then the balloon's queue, then the pages that are granted.
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

    /// An arena of `pages` pages in all; `None` unless that is a power of two within the bounds.
    pub fn new(pages: u32) -> Option<Self> {
        let fits = (Self::MIN_PAGES..=Self::MAX_PAGES).contains(&pages) && pages.is_power_of_two();
        fits.then_some(Self { pages })
    }

    /// Pages in all; frame numbers are below.
    #[inline]
    pub fn pages(self) -> u32 {
        self.pages
    }

    /// Bytes in all.
    pub fn bytes(self) -> usize {
        self.pages as usize * PAGE_SIZE
    }

    /// Entries of the grant table: two a page, so that pages may be granted and others accepted; at least a page
    /// full.
    #[inline]
    pub fn entries(self) -> u32 {
        (self.pages * 2).max((PAGE_SIZE / ENTRY_LEN) as u32)
    }

    /// Where the balloon's queue begins, in bytes.
    pub fn balloon(self) -> usize {
        self.entries() as usize * ENTRY_LEN
    }

    /// Slots of the balloon's queue, a power of two: it can hold every page.
    pub fn balloon_slots(self) -> u32 {
        self.pages
    }

    /// The first frame that may be granted.
    #[inline]
    pub fn first(self) -> u32 {
        let queue = (self.balloon_slots() as usize * size_of::<u32>()).div_ceil(PAGE_SIZE);
        (self.balloon() / PAGE_SIZE + 1 + queue) as u32
    }

    /// Whether a frame number, of whomever, names a page that may be granted.
    #[inline]
    pub fn grantable(self, frame: u32) -> bool {
        (self.first()..self.pages).contains(&frame)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_do_not_overlap_and_leave_room() {
        for shift in 6..=20 {
            let layout = Layout::new(1 << shift).unwrap();
            let queue = layout.balloon() + PAGE_SIZE + layout.balloon_slots() as usize * 4;
            assert!(layout.first() as usize * PAGE_SIZE >= queue);
            assert!(layout.first() < layout.pages() / 8, "{layout:?} has no room");
            assert_eq!(layout.balloon() % PAGE_SIZE, 0);
        }
    }

    #[test]
    fn odd_sizes_are_refused() {
        for pages in [0, 1, 63, 65, 1000, (1 << 20) + 1, 1 << 21, u32::MAX] {
            assert_eq!(Layout::new(pages), None, "{pages}");
        }
    }
}
