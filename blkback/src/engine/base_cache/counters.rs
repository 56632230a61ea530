//! What one disk has had of the cache: written by the threads of its rings and of its image.

use std::sync::atomic::{AtomicU64, Ordering};

/// The counters. A lookup of a block is one of the first three.
#[derive(Debug, Default)]
pub(super) struct Counters {
    /// Blocks that were there.
    hits: AtomicU64,
    /// Blocks that somebody else was reading.
    waits: AtomicU64,
    /// Blocks that were read.
    misses: AtomicU64,
    /// Bytes that were read from the medium, of whole blocks and past the cache.
    read_bytes: AtomicU64,
}

/// What is added to the counters at once.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Looked {
    pub(super) hits: u64,
    pub(super) waits: u64,
    pub(super) misses: u64,
    pub(super) read_bytes: u64,
}

impl Counters {
    pub(super) fn add(&self, looked: Looked) {
        let Looked { hits, waits, misses, read_bytes } = looked;
        for (counter, more) in
            [(&self.hits, hits), (&self.waits, waits), (&self.misses, misses), (&self.read_bytes, read_bytes)]
        {
            if more > 0 {
                counter.fetch_add(more, Ordering::Relaxed);
            }
        }
    }

    pub(super) fn get(&self) -> Looked {
        let get = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        Looked {
            hits: get(&self.hits),
            waits: get(&self.waits),
            misses: get(&self.misses),
            read_bytes: get(&self.read_bytes),
        }
    }
}
