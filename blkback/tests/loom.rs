//! A cached block's slot under the loom model checker, which tries every interleaving and every reordering of small runs that the memory
//! model allows: who has pinned a block reads that block's bytes, and who fills a slot has it alone.
//!
//! It is the code of the cache, over loom's atomics. The ordering of each access is also left out, and a run must then fail.

#[allow(dead_code)]
#[path = "../src/engine/base_cache/slot.rs"]
mod slot;

use loom::cell::UnsafeCell;
use loom::sync::Arc;
use loom::thread;
use slot::{Pinned, Slot, Withdrawn};
use std::panic::{AssertUnwindSafe, catch_unwind};

/// Loom's atomics, of which the ordering of one access can be left out.
mod atomic {
    use std::collections::BTreeSet;
    use std::panic::Location;
    use std::sync::Mutex;
    pub(crate) use std::sync::atomic::Ordering;

    /// An access in the source: its file and line.
    pub(crate) type Site = &'static Location<'static>;

    /// Those that have another ordering than Relaxed.
    static SEEN: Mutex<BTreeSet<Site>> = Mutex::new(BTreeSet::new());
    static WEAKENED: Mutex<Option<Site>> = Mutex::new(None);

    pub(crate) fn seen() -> BTreeSet<Site> {
        SEEN.lock().expect("no panic").clone()
    }

    pub(crate) fn weaken(site: Option<Site>) {
        *WEAKENED.lock().expect("no panic") = site;
    }

    #[track_caller]
    fn of(order: Ordering) -> Ordering {
        let site = Location::caller();
        if order != Ordering::Relaxed {
            SEEN.lock().expect("no panic").insert(site);
        }
        if *WEAKENED.lock().expect("no panic") == Some(site) { Ordering::Relaxed } else { order }
    }

    macro_rules! atomic {
        ($name:ident, $value:ty) => {
            #[derive(Debug)]
            pub(crate) struct $name(loom::sync::atomic::$name);

            #[allow(dead_code)] // Each has what the other needs.
            impl $name {
                pub(crate) fn new(value: $value) -> $name {
                    $name(loom::sync::atomic::$name::new(value))
                }

                #[track_caller]
                pub(crate) fn load(&self, order: Ordering) -> $value {
                    self.0.load(of(order))
                }

                #[track_caller]
                pub(crate) fn store(&self, value: $value, order: Ordering) {
                    self.0.store(value, of(order));
                }

                #[track_caller]
                pub(crate) fn fetch_sub(&self, value: $value, order: Ordering) -> $value {
                    self.0.fetch_sub(value, of(order))
                }

                #[track_caller]
                pub(crate) fn compare_exchange(
                    &self,
                    current: $value,
                    new: $value,
                    success: Ordering,
                    failure: Ordering,
                ) -> Result<$value, $value> {
                    self.0.compare_exchange(current, new, of(success), failure)
                }

                #[track_caller]
                pub(crate) fn compare_exchange_weak(
                    &self,
                    current: $value,
                    new: $value,
                    success: Ordering,
                    failure: Ordering,
                ) -> Result<$value, $value> {
                    self.0.compare_exchange_weak(current, new, of(success), failure)
                }
            }
        };
    }

    atomic!(AtomicU32, u32);
    atomic!(AtomicU64, u64);
}

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

/// Explores a run with at most three preemptions.
fn check(run: fn()) {
    let mut builder = loom::model::Builder::new();
    builder.preemption_bound = Some(3);
    builder.check(run);
}

/// The line of an access.
fn text(site: atomic::Site) -> &'static str {
    let source = include_str!("../src/engine/base_cache/slot.rs");
    source.lines().nth(site.line() as usize - 1).expect("a line of the file").trim()
}

fn main() {
    let runs = [evict_while_read, forget_while_read];
    runs.into_iter().for_each(check);
    let sites = atomic::seen();
    println!("a slot's bytes are its block's, by {} ordered accesses", sites.len());
    // What fails below is expected to.
    std::panic::set_hook(Box::new(|_| ()));
    let mut not_needed = Vec::new();
    for site in sites {
        atomic::weaken(Some(site));
        let is_needed = runs.iter().any(|run| catch_unwind(AssertUnwindSafe(|| check(*run))).is_err());
        atomic::weaken(None);
        println!(
            "{}:{}: {}: {}",
            site.file(),
            site.line(),
            if is_needed { "needed" } else { "not needed" },
            text(site)
        );
        if !is_needed {
            not_needed.push(text(site));
        }
    }
    drop(std::panic::take_hook());
    assert!(not_needed.is_empty(), "{not_needed:?}");
}
