//! Bytes that are to be sent to a client: in pieces, each freed once it is sent, so that a client that always has some
//! unsent does not make them grow.

use std::collections::VecDeque;

/// The longest piece that small replies are gathered in, for few system calls.
const PIECE: usize = 256 << 10;
/// Data of this length is a piece of its own rather than copied.
const LARGE: usize = 64 << 10;

/// A queue of bytes.
#[derive(Debug, Default)]
pub struct Output {
    pieces: VecDeque<Vec<u8>>,
    /// How much of the first piece has been sent.
    sent: usize,
    len: usize,
}

impl Output {
    /// The number of bytes.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The first bytes; empty only if there are none.
    pub fn first(&self) -> &[u8] {
        self.pieces.front().map_or(&[], |piece| &piece[self.sent..])
    }

    /// Appends bytes.
    pub fn push(&mut self, bytes: Vec<u8>) {
        if bytes.len() < LARGE {
            return self.push_copy(&bytes);
        }
        self.len += bytes.len();
        self.pieces.push_back(bytes);
    }

    /// Appends a copy of bytes.
    pub fn push_copy(&mut self, bytes: &[u8]) {
        self.len += bytes.len();
        match self.pieces.back_mut() {
            Some(last) if has_room(last, bytes.len()) => last.extend_from_slice(bytes),
            _ => self.pieces.push_back(bytes.to_vec()),
        }
    }

    /// The memory that the bytes occupy.
    #[cfg(test)]
    pub fn allocated(&self) -> usize {
        self.pieces.iter().map(Vec::capacity).sum()
    }

    /// Removes the first `bytes` bytes, at most as many as [`Output::first`] has.
    pub fn pop(&mut self, bytes: usize) {
        self.sent += bytes;
        self.len = self.len.saturating_sub(bytes);
        if self.pieces.front().is_none_or(|piece| self.sent < piece.len()) {
            return;
        }
        self.sent = 0;
        match self.pieces.front_mut() {
            // Kept for the next bytes: usual replies need no allocation.
            Some(piece) if self.len == 0 && piece.capacity() <= PIECE => piece.clear(),
            _ => drop(self.pieces.pop_front()),
        }
    }
}

/// Whether bytes are to be appended to a piece: without moving it if it is large.
fn has_room(piece: &Vec<u8>, bytes: usize) -> bool {
    piece.len() + bytes <= PIECE && (piece.len() < LARGE || piece.len() + bytes <= piece.capacity())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn output_keeps_the_order_of_bytes_whatever_their_lengths() {
        let mut output = Output::default();
        let mut expected = Vec::new();
        for (n, len) in [1, 0, 16, LARGE, 16, PIECE, 3, LARGE - 1, LARGE - 1].into_iter().enumerate() {
            output.push(vec![n as u8; len]);
            expected.extend(vec![n as u8; len]);
        }
        assert_eq!(output.len(), expected.len());
        let mut sent = Vec::new();
        while !output.is_empty() {
            let len = output.first().len().min(1000);
            sent.extend_from_slice(&output.first()[..len]);
            output.pop(len);
        }
        assert!(sent == expected && output.first().is_empty() && output.pieces.len() <= 1);
    }

    #[test]
    fn output_that_never_is_empty_stays_bounded() {
        let mut output = Output::default();
        output.push(vec![0; 100]);
        for _ in 0..100_000 {
            output.push(vec![0; 100]);
            output.pop(100);
        }
        assert!(output.allocated() <= 4 * PIECE, "{} bytes for {}", output.allocated(), output.len());
    }
}
