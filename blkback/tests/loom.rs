//! A cached block's slot under the loom model checker, which tries every interleaving and every reordering of small runs that the memory
//! model allows: who has pinned a block reads that block's bytes, and who fills a slot has it alone.
//!
//! It is the code of the cache, over loom's atomics. The ordering of each access is also left out, and a run must then fail.

#[path = "../../tests/loom/weakened.rs"]
mod atomic;
#[allow(dead_code)]
#[path = "../src/engine/base_cache/slot.rs"]
mod slot;

use loom::cell::UnsafeCell;
use loom::sync::Arc;
use loom::thread;
use slot::{Pinned, Slot, Withdrawn};

/// Keys of two blocks; the bytes of a block are its key.
const BLOCKS: [u64; 2] = [1, 2];

/// A slot and its memory.
struct Cached {
    slot: Slot,
    memory: UnsafeCell<u64>,
}

impl Cached {
    /// With the first block.
    fn new() -> Arc<Cached> {
        let cached = Cached { slot: Slot::default(), memory: UnsafeCell::new(0) };
        cached.fill(BLOCKS[0]);
        Arc::new(cached)
    }

    /// Fills the slot, which is exclusive, with a block.
    #[allow(unsafe_code)] // Loom checks what the block claims.
    fn fill(&self, block: u64) {
        self.slot.set_key(block);
        // SAFETY: loom checks that no other access is concurrent.
        self.memory.with_mut(|memory| unsafe { *memory = block });
        self.slot.publish(512, 0);
    }

    /// Reads a block, if it is there; who is left with the slot fills it with the other block.
    #[allow(unsafe_code)] // As above.
    fn read(&self, block: u64) {
        match self.slot.pin(block) {
            Pinned::No => {}
            Pinned::Inherited => self.fill(BLOCKS[1]),
            Pinned::Yes => {
                assert_eq!(self.slot.valid(), 512);
                // SAFETY: loom checks that no write is concurrent.
                let read = self.memory.with(|memory| unsafe { *memory });
                assert_eq!(read, block, "bytes of another block");
                if self.slot.unpin() {
                    self.fill(BLOCKS[1]);
                }
            }
        }
    }
}

/// A block gives way to another one while both are looked for.
fn evict_while_read() {
    let cached = Cached::new();
    let readers = BLOCKS.map(|block| {
        let cached = cached.clone();
        thread::spawn(move || cached.read(block))
    });
    if cached.slot.evict() {
        cached.fill(BLOCKS[1]);
    }
    readers.into_iter().for_each(|reader| reader.join().expect("no panic"));
}

/// A block is forgotten while it is read: it is found no more, and the slot is used for another one by whoever is left with it.
fn forget_while_read() {
    let cached = Cached::new();
    let readers = BLOCKS.map(|block| {
        let cached = cached.clone();
        thread::spawn(move || cached.read(block))
    });
    match cached.slot.withdraw() {
        Withdrawn::Exclusive => cached.fill(BLOCKS[1]),
        Withdrawn::Pinned => cached.read(BLOCKS[0]),
        Withdrawn::NotReady => unreachable!("nobody else withdraws it"),
    }
    readers.into_iter().for_each(|reader| reader.join().expect("no panic"));
    assert_eq!(cached.slot.pin(BLOCKS[0]), Pinned::No, "a block that was forgotten");
    assert_eq!(cached.slot.pin(BLOCKS[1]), Pinned::Yes, "a slot that nobody has");
}

fn main() {
    let source = |_: &str| include_str!("../src/engine/base_cache/slot.rs");
    let runs = [evict_while_read, forget_while_read];
    let not_needed = atomic::explore("a slot's bytes are its block's", &runs, source);
    assert!(not_needed.is_empty(), "{not_needed:?}");
}
