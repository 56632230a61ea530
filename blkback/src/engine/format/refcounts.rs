//! Refcounts in a refcount block: of 1 to 64 bits, those of less than a byte from its lowest bit on.

/// Whether a refcount of so many bits is 0.
pub(super) fn is_zero(block: &[u8], index: u64, bits: u64) -> bool {
    let first = (index * bits / 8) as usize;
    match bits {
        1 | 2 | 4 => block[first] >> (index * bits % 8) & ((1 << bits) - 1) == 0,
        _ => block[first..first + (bits / 8) as usize].iter().all(|byte| *byte == 0),
    }
}

/// Whether a refcount of so many bits is 1.
pub(super) fn is_one(block: &[u8], index: u64, bits: u64) -> bool {
    let first = (index * bits / 8) as usize;
    match bits {
        1 | 2 | 4 => block[first] >> (index * bits % 8) & ((1 << bits) - 1) == 1,
        _ => {
            let (high, low) = block[first..first + (bits / 8) as usize].split_at((bits / 8) as usize - 1);
            low == [1] && high.iter().all(|byte| *byte == 0)
        }
    }
}

/// Makes a refcount of so many bits, which is 0, 1.
pub(super) fn set_one(block: &mut [u8], index: u64, bits: u64) {
    let first = (index * bits / 8) as usize;
    match bits {
        1 | 2 | 4 => block[first] |= 1 << (index * bits % 8),
        // Big-endian.
        _ => block[first + (bits / 8) as usize - 1] = 1,
    }
}

/// Makes a refcount of so many bits 0.
pub(super) fn set_zero(block: &mut [u8], index: u64, bits: u64) {
    let first = (index * bits / 8) as usize;
    match bits {
        1 | 2 | 4 => block[first] &= !(((1 << bits) - 1) << (index * bits % 8)),
        _ => block[first..first + (bits / 8) as usize].fill(0),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn refcount_that_is_set_is_not_zero_and_the_others_are() {
        for bits in [1, 2, 4, 8, 16, 32, 64] {
            for index in 0..8 {
                let mut block = [0; 64];
                assert!(is_zero(&block, index, bits));
                set_one(&mut block, index, bits);
                (0..8).for_each(|other| assert_eq!(is_zero(&block, other, bits), other != index, "{bits}"));
                (0..8).for_each(|other| assert_eq!(is_one(&block, other, bits), other == index, "{bits}"));
                let mut full = [0xff; 64];
                assert_eq!(is_one(&full, index, bits), bits == 1);
                set_zero(&mut full, index, bits);
                (0..8).for_each(|other| assert_eq!(is_zero(&full, other, bits), other == index, "{bits}"));
                set_zero(&mut block, index, bits);
                assert_eq!(block, [0; 64]);
            }
        }
    }
}
