//! The internet checksum (RFC 1071) of private bytes and of frames.

use crate::Frame;

/// A ones'-complement sum, to which chunks of any length, even or odd, are added.
///
/// ```
/// use bridge::checksum::Sum;
///
/// let mut sum = Sum::default();
/// sum.add(&[0x00, 0x01, 0xf2]);
/// sum.add(&[0x03]);
/// assert_eq!(sum.checksum(), (!0xf204u16).to_be_bytes());
/// ```
#[derive(Clone, Copy, Debug, Default)]
pub struct Sum {
    /// Sum of native-endian 16-bit words: the byte order matters only for the result (RFC 1071, 2 (B)).
    words: u64,
    odd: bool,
}

impl Sum {
    /// Adds private bytes, which follow the last ones added.
    pub fn add(&mut self, bytes: &[u8]) {
        let mut sum = sum_words(bytes);
        if self.odd {
            sum = u64::from(fold(sum).swap_bytes());
        }
        self.words = u64::from(fold(self.words)) + sum;
        self.odd ^= bytes.len() & 1 != 0;
    }

    /// Adds the frame's bytes from `at` to its end. Bytes that may change meanwhile are read once.
    pub fn add_frame(&mut self, frame: &Frame, at: usize) {
        let mut chunk = [0; 512];
        for fragment in frame.range(at, usize::MAX) {
            let mut done = 0;
            while done < fragment.len() {
                let len = fragment.part(done, chunk.len()).copy_to(&mut chunk);
                self.add(&chunk[..len]);
                done += len;
            }
        }
    }

    /// The sum in wire order, not complemented: the initial value of a partial checksum's field.
    pub fn partial(self) -> [u8; 2] {
        fold(self.words).to_ne_bytes()
    }

    /// The checksum in wire order.
    pub fn checksum(self) -> [u8; 2] {
        (!fold(self.words)).to_ne_bytes()
    }
}

/// Sums 32-bit words into 64 bits, which no frame overflows, in a loop that the compiler vectorises.
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

    /// The checksum as RFC 1071 defines it.
    fn reference(bytes: &[u8]) -> [u8; 2] {
        let words =
            bytes.chunks(2).map(|pair| u32::from(pair[0]) << 8 | pair.get(1).map_or(0, |b| u32::from(*b)));
        let sum = words.fold(0, |sum: u32, word| (sum + word) % 0x1_0000 + (sum + word) / 0x1_0000);
        (!(sum as u16)).to_be_bytes()
    }

    proptest! {
        #[test]
        fn sum_does_not_depend_on_the_division_into_chunks(
            chunks in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..70), 0..8),
        ) {
            let mut sum = Sum::default();
            chunks.iter().for_each(|chunk| sum.add(chunk));
            prop_assert_eq!(sum.checksum(), reference(&chunks.concat()));
        }

        #[test]
        fn frame_and_its_bytes_have_the_same_sum(
            bytes in prop::collection::vec(any::<u8>(), 0..3000), at in 0..200usize,
        ) {
            let mut sum = Sum::default();
            sum.add_frame(&Frame::from_slice(&bytes), at);
            prop_assert_eq!(sum.checksum(), reference(&bytes[at.min(bytes.len())..]));
        }
    }

    #[test]
    fn checksum_equals_that_of_etherparse() {
        let bytes: Vec<u8> = (0..1501u32).map(|i| (i * 7) as u8).collect();
        let mut sum = Sum::default();
        sum.add(&bytes);
        let theirs = etherparse::checksum::Sum16BitWords::new().add_slice(&bytes).ones_complement();
        assert_eq!(sum.checksum(), theirs.to_ne_bytes());
    }
}
