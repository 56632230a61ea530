//! Refcounts that a file has ahead of its image's tables: of clusters that are allocated next, raised by a batch, so that the medium is
//! synchronized once for all of them. `imago` sees the exact ones. What a killed process leaves raised are leaks.

use super::refcounts;
use std::collections::HashMap;
use std::ops::Range;

/// Bytes of clusters that the first batch has; each one has twice as many as the one before.
const FIRST: u64 = 4 << 20;
/// Bytes of clusters that a batch has at most.
const MOST: u64 = 64 << 20;

/// How refcounts lie in refcount blocks.
#[derive(Clone, Copy, Debug)]
pub(super) struct Layout {
    /// Bytes of a cluster.
    pub(super) cluster: u64,
    /// Bits of a refcount.
    pub(super) bits: u64,
}

impl Layout {
    /// Refcounts of a block.
    pub(super) fn per_block(self) -> u64 {
        self.cluster * 8 / self.bits
    }
}

/// The refcounts that are 1 in the file and 0 as `imago` has them.
#[derive(Debug, Default)]
pub(super) struct Ahead {
    /// By the offset of the block: their numbers in it, ascending within each batch.
    raised: HashMap<u64, Vec<u64>>,
    /// Bytes of the next batch; 0 where none is to be raised.
    batch: u64,
}

impl Ahead {
    /// Raises refcounts from now on.
    pub(super) fn start(&mut self) {
        self.batch = FIRST;
    }

    /// Makes of a block as it is in the file what `imago` has.
    pub(super) fn hide(&self, block: u64, bytes: &mut [u8], layout: Layout) {
        for index in self.raised.get(&block).into_iter().flatten() {
            refcounts::set_zero(bytes, *index, layout.bits);
        }
    }

    /// Makes of a block as `imago` has it what the file is to have. `file` is what it has, if that is known. Where a cluster is allocated of
    /// which the file does not know, those behind it are raised: the numbers in the block of these.
    pub(super) fn raise(
        &mut self,
        block: u64,
        bytes: &mut [u8],
        file: Option<&[u8]>,
        layout: Layout,
    ) -> Range<u64> {
        let bits = layout.bits;
        let raised = self.raised.entry(block).or_default();
        raised.retain(|index| refcounts::is_zero(bytes, *index, bits));
        raised.iter().for_each(|index| refcounts::set_one(bytes, *index, bits));
        let Some(file) = file.filter(|file| self.batch > 0 && *file != bytes) else { return 0..0 };
        let is_new =
            |index: &u64| refcounts::is_zero(file, *index, bits) && !refcounts::is_zero(bytes, *index, bits);
        let Some(last) = (0..layout.per_block()).rev().find(is_new) else { return 0..0 };
        let most = (self.batch / layout.cluster).max(1);
        let end = (last + 1 + most).min(layout.per_block());
        // Where clusters are used again that were freed, the next ones may be in use, or raised.
        let free = (last + 1..end).take_while(|index| refcounts::is_zero(bytes, *index, bits)).count() as u64;
        let end = last + 1 + free;
        for index in last + 1..end {
            refcounts::set_one(bytes, index, bits);
            raised.push(index);
        }
        if free == most {
            self.batch = (self.batch * 2).min(MOST);
        }
        last + 1..end
    }

    /// Raises no more; returns the offsets of the blocks in which refcounts are.
    pub(super) fn stop(&mut self) -> Vec<u64> {
        self.batch = 0;
        self.raised.iter().filter(|(_, raised)| !raised.is_empty()).map(|(block, _)| *block).collect()
    }

    /// A block was written as `imago` has it.
    pub(super) fn lowered(&mut self, block: u64) {
        self.raised.remove(&block);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const BLOCK: u64 = 2 << 20;
    const LAYOUT: Layout = Layout { cluster: 1 << 20, bits: 16 };
    /// A block has 32 refcounts.
    const SMALL: Layout = Layout { cluster: 64, bits: 16 };

    /// A block of which the clusters below so many are allocated.
    fn block(allocated: u64) -> Vec<u8> {
        let mut block = vec![0; 64];
        (0..allocated).for_each(|index| refcounts::set_one(&mut block, index, 16));
        block
    }

    #[test]
    fn batch_is_raised_once_and_hidden_and_the_next_is_larger() {
        let mut ahead = Ahead::default();
        let layout = LAYOUT;
        assert_eq!(layout.per_block(), 1 << 19);
        let size = layout.cluster as usize;
        let exact = |allocated: u64| [block(allocated), vec![0; size - 64]].concat();
        let mut bytes = exact(4);
        assert_eq!(ahead.raise(BLOCK, &mut bytes, Some(&exact(3)), layout), 0..0, "not started");
        ahead.start();
        let mut bytes = exact(4);
        assert_eq!(ahead.raise(BLOCK, &mut bytes, Some(&exact(3)), layout), 4..8);
        assert_eq!(bytes, exact(8));
        // Allocated, of what is raised: the file is as it is to be.
        let mut next = exact(7);
        assert_eq!(ahead.raise(BLOCK, &mut next, Some(&bytes), layout), 0..0);
        assert_eq!(next, bytes);
        let mut read = next.clone();
        ahead.hide(BLOCK, &mut read, layout);
        assert_eq!(read, exact(7));
        ahead.hide(2 * BLOCK, &mut read, layout);
        assert_eq!(read, exact(7));
        let mut next = exact(9);
        assert_eq!(ahead.raise(BLOCK, &mut next, Some(&bytes), layout), 9..17);
        assert_eq!(ahead.stop(), [BLOCK]);
        ahead.lowered(BLOCK);
        assert!(ahead.stop().is_empty());
    }

    #[test]
    fn cluster_that_is_freed_is_not_raised_again_by_itself() {
        let mut ahead = Ahead::default();
        ahead.start();
        let mut bytes = block(4);
        assert_eq!(
            ahead.raise(0, &mut bytes, Some(&block(3)), SMALL),
            4..32,
            "no further than the block's end"
        );
        let file = bytes;
        let mut bytes = block(6);
        ahead.raise(0, &mut bytes, Some(&file), SMALL);
        let mut freed = block(5);
        assert_eq!(ahead.raise(0, &mut freed, Some(&file), SMALL), 0..0);
        let mut expected = block(32);
        refcounts::set_zero(&mut expected, 5, 16);
        assert_eq!(freed, expected);
        // What the file has is not known: nothing is raised.
        assert_eq!(ahead.raise(1, &mut block(5), None, SMALL), 0..0);
    }
}
