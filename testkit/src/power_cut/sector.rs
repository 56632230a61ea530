//! The content of a sector that says which version of which sector it is, so that a mix of two is seen.

/// Bytes of a sector.
pub(super) const SECTOR: usize = 512;

/// What a sector holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Held {
    /// Zeroes.
    Zeroes,
    /// This version of it.
    Version(u64),
    /// Neither of these: a mix of two versions, or another sector.
    Mix,
}

/// The bytes of a version, which is not 0: words that hold both numbers.
pub(super) fn bytes(sector: u64, version: u64) -> [u8; SECTOR] {
    let word = ((version << 32) | sector).to_le_bytes();
    std::array::from_fn(|at| word[at % 8])
}

/// What these bytes of a sector are.
pub(super) fn held(sector: u64, found: &[u8]) -> Held {
    let (first, rest) = found.split_at(8);
    if *rest != found[..found.len() - 8] {
        return Held::Mix;
    }
    let word = first.iter().rev().fold(0, |word, byte| (word << 8) | u64::from(*byte));
    match (word >> 32, word & u64::from(u32::MAX)) {
        (0, 0) => Held::Zeroes,
        (version, number) if number == sector && version != 0 => Held::Version(version),
        _ => Held::Mix,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mix_of_two_versions_is_seen() {
        let [old, new] = [bytes(5, 3), bytes(5, 4)];
        assert_eq!((held(5, &old), held(5, &[0; SECTOR])), (Held::Version(3), Held::Zeroes));
        assert_eq!(held(6, &old), Held::Mix);
        for at in [5, 8, 256, 504, 508] {
            assert_eq!(held(5, &[&old[..at], &new[at..]].concat()), Held::Mix, "{at}");
        }
    }
}
