//! Pages of segments, as `BLKIF_OP_INDIRECT` names them: up to 512 of `struct blkif_request_segment` each
//! (blkif.h:571), in every wire layout alike. They are read from a private copy of the pages.

use super::Segment;
use crate::PAGE_SIZE;

/// Bytes of a segment.
pub const SEGMENT: usize = size_of::<Segment>();

/// Bytes of each page that `count` segments use, in the order of the pages: all but the last are whole.
pub fn page_bytes(count: usize) -> impl Iterator<Item = usize> {
    let bytes = count * SEGMENT;
    (0..bytes.div_ceil(PAGE_SIZE)).map(move |page| (bytes - page * PAGE_SIZE).min(PAGE_SIZE))
}

/// The segments in a copy of their pages, one behind the other; bytes that are no whole segment are not looked at.
pub fn segments(bytes: &[u8]) -> impl ExactSizeIterator<Item = Segment> + use<'_> {
    bytes.as_chunks::<SEGMENT>().0.iter().map(|bytes| {
        let word = u64::from_le_bytes(*bytes);
        Segment::from_words(word as u32, (word >> 32) as u32)
    })
}

/// Writes segments to the start of `bytes`; how many there was room for.
pub fn write_segments(bytes: &mut [u8], segments: &[Segment]) -> usize {
    let room = bytes.as_chunks_mut::<SEGMENT>().0.iter_mut();
    let written = room.zip(segments).map(|(bytes, segment)| {
        let [gref, sectors] = segment.to_words();
        *bytes = (u64::from(gref) | u64::from(sectors) << 32).to_le_bytes();
    });
    written.count()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::GrantRef;

    #[test]
    fn segments_are_read_as_they_are_written() {
        let segment = |n: u32| Segment { gref: GrantRef(n << 20), first_sect: n as u8, last_sect: 7 };
        let all: [Segment; 5] = core::array::from_fn(|n| segment(n as u32));
        let mut bytes = [0xff; 5 * SEGMENT + 3];
        assert_eq!(write_segments(&mut bytes, &all), 5);
        assert!(segments(&bytes).eq(all));
        assert_eq!(bytes[..8], [0, 0, 0, 0, 0, 7, 0, 0]);
        assert_eq!(write_segments(&mut bytes[..17], &all), 2);
    }

    #[test]
    fn pages_hold_512_segments_each() {
        for (count, expected) in
            [(0, &[][..]), (1, &[8]), (512, &[4096]), (513, &[4096, 8]), (4096, &[4096; 8])]
        {
            assert!(page_bytes(count).eq(expected.iter().copied()), "{count}");
        }
    }
}
