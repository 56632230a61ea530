//! Writes of zeroes that may become holes (`detect-zeroes`).
//!
//! The frontend may change its pages while they are looked at, and later. Each byte is read once, as by a device that writes it: if all
//! were zero when they were read, then zeroes are what this write could have left on the disk, whatever the pages hold since. So no
//! copy of them is kept, and nothing is read again.

use super::{DiscardLimits, IoRequest, Operation};
use vm_memory::{VolatileMemory, VolatileSlice};

/// Bytes that are looked at together.
const PART: usize = 4096;

/// Whether a request writes nothing but zeroes, and an extent of the disk at least.
pub(super) fn is_hole(request: &IoRequest, limits: &DiscardLimits) -> bool {
    request.operation() == Operation::Write
        && has_extent(request.sector(), request.len() as u64, limits)
        && request.slices().all(|slice| is_zero(&slice))
}

/// Whether a range, from a sector on and of so many bytes, has an extent in it.
fn has_extent(sector: u64, bytes: u64, limits: &DiscardLimits) -> bool {
    let granularity = u64::from(limits.granularity.max(1));
    let first = (sector * 512).saturating_sub(limits.alignment.into());
    let skipped = first.next_multiple_of(granularity) + u64::from(limits.alignment) - sector * 512;
    skipped + granularity <= bytes
}

fn is_zero(slice: &VolatileSlice<'_>) -> bool {
    let mut bytes = [0; PART];
    // Most data differs from zeroes in its first bytes.
    let mut parts = std::iter::once(0..64.min(slice.len()))
        .chain((64..slice.len()).step_by(PART).map(|at| at..slice.len().min(at + PART)));
    parts.all(|part| {
        let bytes = &mut bytes[..part.len()];
        slice.get_slice(part.start, part.len()).is_ok_and(|part| {
            part.copy_to(bytes);
            bytes.iter().all(|byte| *byte == 0)
        })
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn range_has_an_extent_if_a_whole_one_lies_in_it() {
        let limits = DiscardLimits { granularity: 4096, alignment: 0 };
        for (sector, bytes, expected) in [
            (0, 4096, true),
            (8, 8192, true),
            (1, 4096, false),
            (1, 7680, true),
            (1, 7168, false),
            (0, 3584, false),
        ] {
            assert_eq!(has_extent(sector, bytes, &limits), expected, "{bytes} bytes from {sector} on");
        }
        let shifted = DiscardLimits { granularity: 4096, alignment: 512 };
        for (sector, expected) in [(1, true), (9, true), (0, false), (8, false)] {
            assert_eq!(has_extent(sector, 4096, &shifted), expected, "from {sector} on");
        }
        assert!(has_extent(0, 4608, &shifted));
    }

    #[test]
    fn any_byte_that_is_not_zero_is_seen() {
        let mut memory = vec![0u8; 3 * PART + 512];
        for at in [0, 63, 64, PART, PART + 63, 2 * PART + 64, 3 * PART + 511] {
            memory[at] = 1;
            assert!(!is_zero(&VolatileSlice::from(&mut memory[..])), "{at}");
            memory[at] = 0;
        }
        assert!(is_zero(&VolatileSlice::from(&mut memory[..])));
    }
}
