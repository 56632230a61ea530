//! Strings of bytes, to and from shared memory.

use super::Slot;

impl Slot<'_> {
    /// Copies bytes out, each read once.
    ///
    /// # Panics
    /// If they are not all inside the slot.
    pub fn load_bytes(&self, offset: usize, into: &mut [u8]) {
        assert!(offset <= self.len && into.len() <= self.len - offset, "bytes outside the slot");
        let head = self.unaligned(offset, into.len());
        let (head, rest) = into.split_at_mut(head);
        let (words, tail) = rest.as_chunks_mut::<8>();
        let mut at = offset;
        for byte in head {
            *byte = self.load8(at);
            at += 1;
        }
        for word in words {
            *word = self.load64(at).to_le_bytes();
            at += 8;
        }
        for byte in tail {
            *byte = self.load8(at);
            at += 1;
        }
    }

    /// Copies bytes in.
    ///
    /// # Panics
    /// If they do not all fit into the slot.
    pub fn store_bytes(&self, offset: usize, from: &[u8]) {
        assert!(offset <= self.len && from.len() <= self.len - offset, "bytes outside the slot");
        let (head, rest) = from.split_at(self.unaligned(offset, from.len()));
        let (words, tail) = rest.as_chunks::<8>();
        let mut at = offset;
        for byte in head {
            self.store8(at, *byte);
            at += 1;
        }
        for word in words {
            self.store64(at, u64::from_le_bytes(*word));
            at += 8;
        }
        for byte in tail {
            self.store8(at, *byte);
            at += 1;
        }
    }

    /// How many of `len` bytes come before the first that is 8-aligned.
    fn unaligned(&self, offset: usize, len: usize) -> usize {
        (self.base.as_ptr().wrapping_add(offset).addr().wrapping_neg() % 8).min(len)
    }
}

#[cfg(not(any(loom, miri)))]
impl Slot<'_> {
    fn load8(&self, offset: usize) -> u8 {
        use core::sync::atomic::{AtomicU8, Ordering::Relaxed};
        self.word::<AtomicU8>(offset).load(Relaxed)
    }

    fn store8(&self, offset: usize, value: u8) {
        use core::sync::atomic::{AtomicU8, Ordering::Relaxed};
        self.word::<AtomicU8>(offset).store(value, Relaxed);
    }
}

// Loom and Miri know atomics of one size only in one place: a byte is a part of its word, which no other thread writes
// in the runs that they look at.
#[cfg(any(loom, miri))]
impl Slot<'_> {
    fn load8(&self, offset: usize) -> u8 {
        self.load32(offset & !3).to_le_bytes()[offset & 3]
    }

    fn store8(&self, offset: usize, value: u8) {
        let mut word = self.load32(offset & !3).to_le_bytes();
        word[offset & 3] = value;
        self.store32(offset & !3, u32::from_le_bytes(word));
    }
}
