//! Where a part of the guest's disk lies, in one word, so that it is read and replaced at once by any thread: a table of them is what
//! the threads of rings know of an image.

use std::sync::atomic::{AtomicU64, Ordering};

/// Where one unit of the guest's disk lies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Place {
    /// Not known: the image's thread is asked.
    Unknown,
    /// In a file, by its number, at this byte, which is a multiple of 512; `writable` in place.
    At { file: u8, offset: u64, writable: bool },
    /// Nowhere: it reads as zeroes, and a write allocates it.
    Zero,
    /// Compressed, or at an end of a file: the image's thread reads it.
    Slow,
}

const UNKNOWN: u64 = 0;
const READ_ONLY: u64 = 1;
const WRITABLE: u64 = 2;
const ZERO: u64 = 3;
const SLOW: u64 = 4;
/// Kind, file and the offset's units of 512 bytes from the lowest bit on.
const KIND_BITS: u32 = 3;
const FILE_BITS: u32 = 5;
/// Files that a place can name.
pub(super) const MAX_FILES: usize = 1 << FILE_BITS;

impl Place {
    pub(super) fn to_word(self) -> u64 {
        match self {
            Place::Unknown => UNKNOWN,
            Place::Zero => ZERO,
            Place::Slow => SLOW,
            Place::At { file, offset, writable } => {
                let kind = if writable { WRITABLE } else { READ_ONLY };
                (offset / 512) << (KIND_BITS + FILE_BITS) | u64::from(file) << KIND_BITS | kind
            }
        }
    }

    #[inline]
    pub(super) fn from_word(word: u64) -> Place {
        let kind = word & ((1 << KIND_BITS) - 1);
        match kind {
            READ_ONLY | WRITABLE => Place::At {
                file: (word >> KIND_BITS & ((1 << FILE_BITS) - 1)) as u8,
                offset: (word >> (KIND_BITS + FILE_BITS)) * 512,
                writable: kind == WRITABLE,
            },
            ZERO => Place::Zero,
            SLOW => Place::Slow,
            _ => Place::Unknown,
        }
    }
}

/// Units of a chunk.
pub(super) const CHUNK_UNITS: u64 = 512;

/// The places of [`CHUNK_UNITS`] units. The image's thread writes it, the rings' threads read it.
#[derive(Debug)]
pub(super) struct Chunk([AtomicU64; CHUNK_UNITS as usize]);

impl Default for Chunk {
    fn default() -> Chunk {
        Chunk(std::array::from_fn(|_| AtomicU64::new(UNKNOWN)))
    }
}

impl Chunk {
    /// The place of a unit of the disk that is in this chunk.
    #[inline]
    pub(super) fn get(&self, unit: u64) -> Place {
        Place::from_word(self.0[(unit % CHUNK_UNITS) as usize].load(Ordering::SeqCst))
    }

    pub(super) fn set(&self, unit: u64, place: Place) {
        self.0[(unit % CHUNK_UNITS) as usize].store(place.to_word(), Ordering::SeqCst);
    }

    /// Forgets all places.
    pub(super) fn clear(&self) {
        self.0.iter().for_each(|word| word.store(UNKNOWN, Ordering::SeqCst));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn place_is_what_was_stored(file in 0..MAX_FILES as u8, sector in 0..1u64 << 53, writable: bool, unit: u64) {
            let place = Place::At { file, offset: sector * 512, writable };
            let chunk = Chunk::default();
            prop_assert_eq!(chunk.get(unit), Place::Unknown);
            for place in [place, Place::Zero, Place::Slow, Place::Unknown] {
                chunk.set(unit, place);
                prop_assert_eq!(chunk.get(unit), place);
            }
        }
    }
}
