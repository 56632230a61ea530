//! A private allocator of numbers: pages of an arena, or grant references. Lowest first, so that arenas stay dense.

/// Free numbers below a bound, given out one by one or in runs.
#[derive(Debug)]
pub struct RangeAllocator {
    free: Box<[u64]>,
    bound: u32,
    left: u32,
    /// No number below is free.
    low: u32,
}

impl RangeAllocator {
    /// Numbers from `first` to below `bound`, all free.
    pub fn new(first: u32, bound: u32) -> Self {
        let mut runs = Self { free: vec![0; bound.div_ceil(64) as usize].into(), bound, left: 0, low: bound };
        for number in first..bound {
            runs.put(number);
        }
        runs
    }

    /// How many are free.
    pub fn left(&self) -> u32 {
        self.left
    }

    fn is_free(&self, number: u32) -> bool {
        self.free.get(number as usize / 64).is_some_and(|word| word & bit(number) != 0)
    }

    /// The lowest free number not below `from`.
    fn next_free(&self, from: u32) -> Option<u32> {
        let mut at = from as usize / 64;
        let mut word = self.free.get(at)? & (!0 << (from % 64));
        while word == 0 {
            at += 1;
            word = *self.free.get(at)?;
        }
        Some(at as u32 * 64 + word.trailing_zeros())
    }

    /// Takes `count` consecutive numbers, the lowest that there are; `None` if there is no such run.
    pub fn take(&mut self, count: u32) -> Option<u32> {
        if count == 0 || count > self.left {
            return None;
        }
        let first = self.next_free(self.low)?;
        let mut start = first;
        loop {
            let run = (start..start.saturating_add(count).min(self.bound)).take_while(|n| self.is_free(*n));
            let len = run.count() as u32;
            if len == count {
                break;
            }
            start = self.next_free(start + len)?;
        }
        for number in start..start + count {
            self.free[number as usize / 64] &= !bit(number);
        }
        self.left -= count;
        self.low = if start == first { start + count } else { first };
        Some(start)
    }

    /// Gives a number back; `false`, and nothing done, if it is free already or out of bounds.
    pub fn put(&mut self, number: u32) -> bool {
        if number >= self.bound || self.is_free(number) {
            return false;
        }
        self.free[number as usize / 64] |= bit(number);
        self.left += 1;
        self.low = self.low.min(number);
        true
    }
}

fn bit(number: u32) -> u64 {
    1 << (number % 64)
}

/// A set of numbers below a bound.
#[derive(Debug)]
pub(super) struct Set(Box<[u64]>);

impl Set {
    /// Empty, for numbers below `bound`.
    pub(super) fn new(bound: u32) -> Self {
        Self(vec![0; bound.div_ceil(64) as usize].into())
    }

    /// Whether `number` is in.
    #[cfg(test)]
    pub(super) fn has(&self, number: u32) -> bool {
        self.0.get(number as usize / 64).is_some_and(|word| word & bit(number) != 0)
    }

    /// Puts it in; `false` if it was in already, or is out of bounds.
    pub(super) fn insert(&mut self, number: u32) -> bool {
        match self.0.get_mut(number as usize / 64) {
            Some(word) if *word & bit(number) == 0 => *word |= bit(number),
            _ => return false,
        }
        true
    }

    /// Takes it out; `false` if it was not in.
    pub(super) fn remove(&mut self, number: u32) -> bool {
        match self.0.get_mut(number as usize / 64) {
            Some(word) if *word & bit(number) != 0 => *word &= !bit(number),
            _ => return false,
        }
        true
    }

    /// Takes every number out and gives it to `each`.
    pub(super) fn drain(&mut self, mut each: impl FnMut(u32)) {
        for (at, word) in self.0.iter_mut().enumerate() {
            while *word != 0 {
                each(at as u32 * 64 + word.trailing_zeros());
                *word &= *word - 1;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeSet;

    proptest! {
        #[test]
        fn agrees_with_a_set(steps in proptest::collection::vec((any::<bool>(), 1u32..9, any::<u32>()), 1..200)) {
            let (first, bound) = (5, 77);
            let mut runs = RangeAllocator::new(first, bound);
            let mut model: BTreeSet<u32> = (first..bound).collect();
            let mut taken: Vec<u32> = Vec::new();
            for (take, count, pick) in steps {
                if take {
                    let lowest = model.iter().copied().find(|s| (*s..s + count).all(|n| model.contains(&n)));
                    prop_assert_eq!(runs.take(count), lowest);
                    for number in lowest.into_iter().flat_map(|s| s..s + count) {
                        model.remove(&number);
                        taken.push(number);
                    }
                } else if !taken.is_empty() {
                    let number = taken.swap_remove(pick as usize % taken.len());
                    prop_assert!(runs.put(number));
                    prop_assert!(!runs.put(number), "given back twice");
                    model.insert(number);
                }
                prop_assert_eq!(runs.left() as usize, model.len());
            }
        }

        #[test]
        fn sets_agree_with_a_set(steps in proptest::collection::vec((any::<bool>(), 0u32..140), 1..100)) {
            let mut set = Set::new(130);
            let mut model = BTreeSet::new();
            for (insert, number) in steps {
                if insert && number < 130 {
                    prop_assert_eq!(set.insert(number), model.insert(number));
                } else if !insert {
                    prop_assert_eq!(set.remove(number), model.remove(&number));
                }
                prop_assert_eq!(set.has(number), model.contains(&number));
            }
            let mut all = BTreeSet::new();
            set.drain(|number| { all.insert(number); });
            prop_assert_eq!(all, model);
        }
    }
}
