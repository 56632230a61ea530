//! Splits a range of the disk into chunks that one request each can carry.

use core::ops::Range;

use ring_abi::PAGE_SIZE;
use ring_abi::blkif::{MAX_SEGMENTS, SECTOR};

/// The most bytes that one request carries in segments of its own, 44 KiB: 11 of one page each. An indirect one carries more.
pub const MAX_REQUEST_BYTES: usize = MAX_SEGMENTS * PAGE_SIZE;

/// One chunk of a range of the disk.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Chunk {
    /// First byte on the disk.
    pub offset: u64,
    /// The chunk's bytes, counted from the range's start.
    pub bytes: Range<usize>,
}

impl Chunk {
    /// First sector on the disk, in units of 512 bytes.
    #[inline]
    pub fn sector(&self) -> u64 {
        self.offset / SECTOR as u64
    }
}

/// The chunks of a range; see [`split`].
#[derive(Clone, Debug)]
pub struct Chunks {
    offset: u64,
    len: usize,
    max: usize,
    /// Start of the next chunk.
    next: usize,
}

/// Splits `len` bytes from `offset` on into chunks of `max` bytes, the last one possibly shorter.
///
/// ```
/// use blkfront::split::{MAX_REQUEST_BYTES, split};
///
/// let chunks: Vec<_> = split(4096, 100_000, MAX_REQUEST_BYTES).collect();
/// assert_eq!(chunks.len(), 3);
/// assert_eq!((chunks[1].sector(), chunks[1].bytes.clone()), (96, 45056..90112));
/// ```
///
/// # Panics
/// If `max` is 0.
pub fn split(offset: u64, len: usize, max: usize) -> Chunks {
    assert!(max > 0, "chunks of 0 bytes");
    Chunks { offset, len, max, next: 0 }
}

impl Iterator for Chunks {
    type Item = Chunk;

    #[inline]
    fn next(&mut self) -> Option<Chunk> {
        let start = self.next;
        if start >= self.len {
            return None;
        }
        self.next = start.saturating_add(self.max).min(self.len);
        Some(Chunk { offset: self.offset + start as u64, bytes: start..self.next })
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        let count = (self.len - self.next).div_ceil(self.max);
        (count, Some(count))
    }
}

impl ExactSizeIterator for Chunks {}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::vec::Vec;

    #[test]
    fn chunks_cover_the_range_once_in_order() {
        for (len, expected) in [(0, 0), (1, 1), (100, 1), (101, 2), (300, 3)] {
            let chunks = split(512, len, 100);
            assert_eq!(chunks.len(), expected);
            let bytes: Vec<usize> = chunks.clone().flat_map(|chunk| chunk.bytes).collect();
            assert_eq!(bytes, (0..len).collect::<Vec<_>>());
            assert!(chunks.clone().all(|chunk| chunk.offset == 512 + chunk.bytes.start as u64));
            assert_eq!(chunks.count(), expected);
        }
    }
}
