//! How a discard is divided: into slices that end at multiples of their greatest length, so that each takes the medium a short
//! time and no extent lies in two of them.

use std::ops::Range;

/// The most bytes that are discarded at once.
pub(super) const MAX_SLICE: u64 = 64 << 20;

/// The slices of a range of bytes, in their order; together they are the range.
pub(super) fn slices(range: Range<u64>) -> impl Iterator<Item = Range<u64>> {
    let mut start = range.start;
    std::iter::from_fn(move || {
        let boundary = (start / MAX_SLICE).saturating_add(1).saturating_mul(MAX_SLICE);
        let slice = start..boundary.min(range.end);
        start = slice.end;
        (!slice.is_empty()).then_some(slice)
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn slices_are_the_range_and_end_at_boundaries(
            start in 0..8 * MAX_SLICE,
            len in prop_oneof![0..4096u64, 0..16 * MAX_SLICE],
        ) {
            let mut at = start;
            for slice in slices(start..start + len) {
                prop_assert_eq!(slice.start, at);
                prop_assert!(slice.end - slice.start <= MAX_SLICE && slice.end > slice.start);
                prop_assert!(slice.end % MAX_SLICE == 0 || slice.end == start + len);
                at = slice.end;
            }
            prop_assert_eq!(at, start + len);
        }
    }

    #[test]
    fn slices_of_the_last_bytes_there_are_end() {
        let last = u64::MAX - 5..u64::MAX;
        assert!(slices(last.clone()).eq([last]));
    }
}
