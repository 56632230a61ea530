//! Bytes that tell where they belong: any part that is lost, stale, moved or swapped differs from what is expected.

use rand::Rng;
use rand::SeedableRng;
use rand::rngs::SmallRng;

/// Bytes of a disk's block.
pub const BLOCK: usize = 4096;
/// Bytes of the table that patterns are taken from; with a longest pattern more at its end.
const TABLE: usize = 64 << 10;
const LONGEST: usize = BLOCK;

/// Random bytes made from a seed. A pattern is a stretch of them and begins with its number.
#[derive(Debug)]
pub struct Pattern {
    table: Vec<u8>,
    seed: u64,
}

impl Pattern {
    /// The same seed gives the same bytes.
    pub fn new(seed: u64) -> Pattern {
        let mut table = vec![0; TABLE + LONGEST];
        SmallRng::seed_from_u64(seed).fill_bytes(&mut table);
        Pattern { table, seed }
    }

    /// Writes pattern `number` into the whole of `to`, of 8 to 4096 bytes.
    pub fn fill(&self, number: u64, to: &mut [u8]) {
        let (head, rest) = to.split_at_mut(8.min(to.len()));
        head.copy_from_slice(&self.head(number)[..head.len()]);
        rest.copy_from_slice(self.stretch(number, rest.len()));
    }

    /// Whether these bytes are pattern `number`, all of them.
    pub fn is(&self, number: u64, bytes: &[u8]) -> bool {
        let (head, rest) = bytes.split_at(8.min(bytes.len()));
        head == &self.head(number)[..head.len()] && rest == self.stretch(number, rest.len())
    }

    fn head(&self, number: u64) -> [u8; 8] {
        (number ^ self.seed).to_le_bytes()
    }

    fn stretch(&self, number: u64, len: usize) -> &[u8] {
        // An odd multiplier: neighbours start far from each other.
        let start = number.wrapping_mul(0x9e37_79b9_7f4a_7c15) as usize % TABLE;
        &self.table[start..][..len.min(LONGEST)]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pattern_is_itself_and_no_other() {
        let pattern = Pattern::new(7);
        let mut block = [0; BLOCK];
        pattern.fill(3, &mut block);
        assert!(pattern.is(3, &block));
        assert!(!pattern.is(4, &block) && !Pattern::new(8).is(3, &block));
        for at in [0, 7, 8, 4095] {
            block[at] ^= 1;
            assert!(!pattern.is(3, &block), "byte {at}");
            block[at] ^= 1;
        }
        let mut short = [0; 5];
        pattern.fill(3, &mut short);
        assert!(pattern.is(3, &short));
    }
}
