//! A private allocator of numbers: pages of an arena, or grant references. Lowest first, so that arenas stay dense.

use fixedbitset::FixedBitSet;

const WORD: u32 = usize::BITS;

/// Numbers below a bound, allocated one by one or as a range of consecutive ones.
#[derive(Debug)]
pub(super) struct RangeAllocator {
    free: FixedBitSet,
    bound: u32,
    available: u32,
    /// No number below is free.
    lowest: u32,
}

impl RangeAllocator {
    /// Creates an allocator in which all numbers from `first` to below `bound` are free.
    pub(super) fn new(first: u32, bound: u32) -> Self {
        let mut free = FixedBitSet::with_capacity(bound as usize);
        free.insert_range(first as usize..bound as usize);
        Self { free, bound, available: bound - first, lowest: first }
    }

    /// How many numbers are free.
    pub(super) fn available(&self) -> u32 {
        self.available
    }

    /// The lowest free number not below `from`.
    fn next_free(&self, from: u32) -> Option<u32> {
        let words = self.free.as_slice();
        let mut at = (from / WORD) as usize;
        let mut word = words.get(at)? & (!0 << (from % WORD));
        while word == 0 {
            at += 1;
            word = *words.get(at)?;
        }
        Some(at as u32 * WORD + word.trailing_zeros())
    }

    /// Allocates `count` consecutive numbers, the lowest available, and returns the first; `None` if there is no such
    /// range.
    pub(super) fn allocate(&mut self, count: u32) -> Option<u32> {
        if count == 0 || count > self.available {
            return None;
        }
        let first = self.next_free(self.lowest)?;
        let mut start = first;
        loop {
            let range = start..start.saturating_add(count).min(self.bound);
            let len = range.take_while(|n| self.free.contains(*n as usize)).count() as u32;
            if len == count {
                break;
            }
            start = self.next_free(start + len)?;
        }
        for number in start..start + count {
            self.free.remove(number as usize);
        }
        self.available -= count;
        self.lowest = if start == first { start + count } else { first };
        Some(start)
    }

    /// Frees a number; `false`, and nothing changed, if it is free already or out of bounds.
    pub(super) fn free(&mut self, number: u32) -> bool {
        if number >= self.bound || self.free.put(number as usize) {
            return false;
        }
        self.available += 1;
        self.lowest = self.lowest.min(number);
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeSet;

    proptest! {
        #[test]
        fn allocator_in_any_use_agrees_with_a_model(
            steps in proptest::collection::vec((any::<bool>(), 1u32..9, any::<u32>()), 1..200),
        ) {
            let first = 5;
            let bound = 77;
            let mut allocator = RangeAllocator::new(first, bound);
            let mut model: BTreeSet<u32> = (first..bound).collect();
            let mut allocated: Vec<u32> = Vec::new();
            for (allocate, count, pick) in steps {
                if allocate {
                    let lowest = model.iter().copied().find(|s| (*s..s + count).all(|n| model.contains(&n)));
                    prop_assert_eq!(allocator.allocate(count), lowest);
                    for number in lowest.into_iter().flat_map(|s| s..s + count) {
                        model.remove(&number);
                        allocated.push(number);
                    }
                } else if !allocated.is_empty() {
                    let number = allocated.swap_remove(pick as usize % allocated.len());
                    prop_assert!(allocator.free(number));
                    prop_assert!(!allocator.free(number), "freed twice");
                    model.insert(number);
                }
                prop_assert_eq!(allocator.available() as usize, model.len());
            }
        }
    }

    #[test]
    fn free_of_a_number_out_of_bounds_is_refused() {
        let mut allocator = RangeAllocator::new(5, 77);
        assert!(!allocator.free(77));
        assert!(!allocator.free(u32::MAX));
        assert_eq!(allocator.available(), 72);
    }
}
