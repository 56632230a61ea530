//! Random bytes and choices from a seed: the same in every run.

use rand::rngs::SmallRng;
use rand::{Rng, RngExt, SeedableRng};
use ring_abi::shm::Memory;
use ring_abi::testing::words;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};

/// Makes a generator with this seed.
pub fn generator(seed: u64) -> SmallRng {
    SmallRng::seed_from_u64(seed)
}

/// Makes `len` bytes, which differ between seeds and between positions.
pub fn bytes(seed: u64, len: usize) -> Vec<u8> {
    let mut bytes = vec![0; len];
    generator(seed).fill_bytes(&mut bytes);
    bytes
}

/// Overwrites random words of shared memory until `stop` is set, as a peer does that races with the reader. `value` gets
/// the chosen word's offset in bytes and returns the new value, or `None` to leave the word unchanged.
pub fn overwrite<M: Memory>(
    memory: &[M],
    seed: u64,
    stop: &AtomicBool,
    mut value: impl FnMut(&mut SmallRng, usize) -> Option<u32>,
) {
    let mut random = generator(seed);
    while !stop.load(Relaxed) {
        let chosen = words(&memory[random.random_range(0..memory.len())]);
        let offset = random.random_range(0..chosen.len() / 4) * 4;
        if let Some(value) = value(&mut random, offset) {
            chosen.store32(offset, value);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_of_one_seed_are_equal_and_of_two_seeds_differ() {
        assert_eq!(bytes(7, 8192), bytes(7, 8192));
        assert_ne!(bytes(7, 4096), bytes(8, 4096));
        assert_eq!(bytes(7, 8192)[..4096], bytes(7, 4096));
        assert_ne!(bytes(7, 8192)[4096..], bytes(7, 4096));
    }
}
