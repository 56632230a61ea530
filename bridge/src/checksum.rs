//! The internet checksum (RFC 1071) in one pass, over private bytes and over frames.

use crate::Frame;

/// A ones'-complement sum in the making. Stretches may be of any length, odd ones too.
#[derive(Clone, Copy, Debug, Default)]
pub struct Sum {
    /// Sum of native-endian 16-bit words: byte order does not matter until the end (RFC 1071, 2 (B)).
    words: u64,
    odd: bool,
}

impl Sum {
    /// Adds private bytes, as if they followed the last ones added.
    pub fn add(&mut self, bytes: &[u8]) {
        let mut sum = sum_words(bytes);
        if self.odd {
            sum = u64::from(fold(sum).swap_bytes());
        }
        self.words = u64::from(fold(self.words)) + sum;
        self.odd ^= bytes.len() & 1 != 0;
    }

    /// Adds the frame's bytes from `at` to its end. Those that may change meanwhile are read once.
    pub fn add_frame(&mut self, frame: &Frame, at: usize) {
        let mut chunk = [0; 512];
        for piece in frame.range(at, usize::MAX) {
            let mut done = 0;
            while done < piece.len() {
                let len = piece.part(done, chunk.len()).copy_to(&mut chunk);
                self.add(&chunk[..len]);
                done += len;
            }
        }
    }

    /// The sum itself in wire order, not complemented: what a partial checksum's field starts from.
    pub fn partial(self) -> [u8; 2] {
        fold(self.words).to_ne_bytes()
    }

    /// The checksum in wire order.
    pub fn checksum(self) -> [u8; 2] {
        (!fold(self.words)).to_ne_bytes()
    }
}

/// Sums 32-bit words into 64 bits, which no frame overflows, and leaves the loop to the vectoriser.
fn sum_words(bytes: &[u8]) -> u64 {
    let (words, rest) = bytes.as_chunks::<4>();
    let sum: u64 = words.iter().map(|word| u64::from(u32::from_ne_bytes(*word))).sum();
    let mut last = [0; 4];
    last[..rest.len()].copy_from_slice(rest);
    sum + u64::from(u32::from_ne_bytes(last))
}

fn fold(mut sum: u64) -> u16 {
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    sum as u16
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// RFC 1071 as it is written.
    fn plainly(bytes: &[u8]) -> [u8; 2] {
        let words =
            bytes.chunks(2).map(|pair| u32::from(pair[0]) << 8 | pair.get(1).map_or(0, |b| u32::from(*b)));
        let sum = words.fold(0, |sum: u32, word| (sum + word) % 0x1_0000 + (sum + word) / 0x1_0000);
        (!(sum as u16)).to_be_bytes()
    }

    proptest! {
        #[test]
        fn any_division_into_stretches_gives_the_plain_sum(
            stretches in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..70), 0..8),
        ) {
            let mut sum = Sum::default();
            stretches.iter().for_each(|stretch| sum.add(stretch));
            prop_assert_eq!(sum.checksum(), plainly(&stretches.concat()));
        }

        #[test]
        fn a_frame_sums_as_its_bytes(bytes in prop::collection::vec(any::<u8>(), 0..3000), at in 0..200usize) {
            let mut sum = Sum::default();
            sum.add_frame(&Frame::from_slice(&bytes), at);
            prop_assert_eq!(sum.checksum(), plainly(&bytes[at.min(bytes.len())..]));
        }
    }

    #[test]
    fn agrees_with_etherparse() {
        let bytes: Vec<u8> = (0..1501u32).map(|i| (i * 7) as u8).collect();
        let mut sum = Sum::default();
        sum.add(&bytes);
        let theirs = etherparse::checksum::Sum16BitWords::new().add_slice(&bytes).ones_complement();
        assert_eq!(sum.checksum(), theirs.to_ne_bytes());
    }
}
