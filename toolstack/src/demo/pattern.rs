//! Data patterns that identify their position: lost, stale, moved or swapped data differs from what is expected.

use rand::Rng;
use rand::SeedableRng;
use rand::rngs::SmallRng;

/// Bytes of a disk block.
pub const BLOCK: usize = 4096;
/// Positions in the table at which a pattern may start; the table is longer by the longest pattern.
const TABLE: usize = 64 << 10;
const LONGEST: usize = BLOCK;

/// Pseudo-random data from a seed. A pattern is its number followed by a slice of that data.
///
/// ```
/// use toolstack::demo::pattern::{BLOCK, Pattern};
///
/// let pattern = Pattern::new(1);
/// let mut block = [0; BLOCK];
/// pattern.fill(3, &mut block);
/// assert!(pattern.matches(3, &block) && !pattern.matches(4, &block));
/// ```
#[derive(Debug)]
pub struct Pattern {
    table: Vec<u8>,
    seed: u64,
}

impl Pattern {
    /// Creates the patterns of a seed.
    pub fn new(seed: u64) -> Pattern {
        let mut table = vec![0; TABLE + LONGEST];
        SmallRng::seed_from_u64(seed).fill_bytes(&mut table);
        Pattern { table, seed }
    }

    /// Fills `to`, of at most 4096 bytes, with pattern `number`.
    pub fn fill(&self, number: u64, to: &mut [u8]) {
        let (head, rest) = to.split_at_mut(8.min(to.len()));
        head.copy_from_slice(&self.head(number)[..head.len()]);
        rest.copy_from_slice(self.body(number, rest.len()));
    }

    /// Whether `bytes` equals pattern `number`.
    pub fn matches(&self, number: u64, bytes: &[u8]) -> bool {
        let (head, rest) = bytes.split_at(8.min(bytes.len()));
        head == &self.head(number)[..head.len()] && rest == self.body(number, rest.len())
    }

    fn head(&self, number: u64) -> [u8; 8] {
        (number ^ self.seed).to_le_bytes()
    }

    fn body(&self, number: u64, len: usize) -> &[u8] {
        // Multiplying by this odd constant spreads the starts of consecutive numbers.
        let start = number.wrapping_mul(0x9e37_79b9_7f4a_7c15) as usize % TABLE;
        &self.table[start..][..len.min(LONGEST)]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pattern_matches_only_its_number_seed_and_every_byte() {
        let pattern = Pattern::new(7);
        let mut block = [0; BLOCK];
        pattern.fill(3, &mut block);
        assert!(pattern.matches(3, &block));
        assert!(!pattern.matches(4, &block) && !Pattern::new(8).matches(3, &block));
        for at in [0, 7, 8, 4095] {
            block[at] ^= 1;
            assert!(!pattern.matches(3, &block), "byte {at}");
            block[at] ^= 1;
        }
        let mut short = [0; 5];
        pattern.fill(3, &mut short);
        assert!(pattern.matches(3, &short));
    }
}
