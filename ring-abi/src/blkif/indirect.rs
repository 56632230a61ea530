//! Pages of segments, as `BLKIF_OP_INDIRECT` names them: up to 512 of `struct blkif_request_segment` each
//! (blkif.h:571), in every wire layout alike.

use super::{SEGMENTS_PER_INDIRECT_PAGE, Segment};
use crate::shm::{Slot, WireValue};

/// The first `count` segments of a page, each read once when it is asked for; no more than the page holds. Bytes
/// beyond them are never looked at.
pub fn segments<'a>(page: Slot<'a>, count: usize) -> impl ExactSizeIterator<Item = Segment> + use<'a> {
    (0..count.min(capacity(&page))).map(move |i| {
        let word = page.load64(8 * i);
        Segment::from_words(word as u32, (word >> 32) as u32)
    })
}

/// Writes segments from the start of a page; how many there was room for.
pub fn write_segments(page: &Slot<'_>, segments: &[Segment]) -> usize {
    let count = segments.len().min(capacity(page));
    for (i, segment) in segments[..count].iter().enumerate() {
        page.store64(8 * i, segment.to_word());
    }
    count
}

fn capacity(page: &Slot<'_>) -> usize {
    SEGMENTS_PER_INDIRECT_PAGE.min(page.len() / 8)
}
