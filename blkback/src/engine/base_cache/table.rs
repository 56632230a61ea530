//! Which slot has which block, which one gives its place to another, and who waits for a block that is being read. Blocks are found
//! without a lock. One lock, which nobody holds while anything is read from a file, orders all changes.
//!
//! Blocks give way by CLOCK, with a few hits remembered of each: one that was read once and not used again goes first, so that one guest
//! that reads all of its disk does not displace what others use.

use super::slot::{NO_KEY, Pinned, Slot, Withdrawn};
use smallvec::SmallVec;
use std::collections::HashMap;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

/// No slot.
const NONE: u32 = u32::MAX;
/// Slots of a chain that are looked at without the lock: a chain may change meanwhile, even into a circle.
const MAX_STEPS: usize = 64;
/// Slots that are looked at for one that gives way: the lock is held for so long.
const MAX_LOOKS: usize = 256;
/// Slots that are looked at under one lock when a file is forgotten.
const SWEEP: usize = 1024;

/// The key of a block of a file: the file's number in the upper bits, 0 for none, the block's in the lower ones.
const BLOCK_BITS: u32 = 36;
/// Numbers that files can have.
pub(super) const MAX_FILES: u32 = 1 << (64 - BLOCK_BITS);

/// The key of a block; `None` if it has none.
#[inline]
pub(super) fn key(file: u32, block: u64) -> Option<u64> {
    let has_key = file > 0 && file < MAX_FILES && block < 1 << BLOCK_BITS;
    has_key.then_some(u64::from(file) << BLOCK_BITS | block)
}

/// What has become of a block that was not found.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Begun<W> {
    /// It is there by now: the slot is pinned.
    Ready(u32),
    /// Somebody reads it: the waiter is kept until then.
    Waits,
    /// The caller is to read it into this slot, and the waiter is kept until then.
    Fill(u32),
    /// No slot is to be had, or the file is not cached any more.
    Refused(W),
}

/// Those who wait for a block.
type Waiters<W> = SmallVec<[W; 1]>;

/// A block that is being read.
#[derive(Debug)]
struct Filling<W> {
    waiters: Waiters<W>,
    /// Its file was forgotten meanwhile.
    forgotten: bool,
}

#[derive(Debug)]
struct Inner<W> {
    /// Slots that were never used: all from this one on.
    unused: u32,
    free: Vec<u32>,
    filling: HashMap<u32, Filling<W>>,
    hand: u32,
    /// Slots that have a block, or are to have one.
    taken: u32,
}

/// The slots, and the chains of slots whose blocks have one hash.
#[derive(Debug)]
pub(super) struct Table<W> {
    slots: Box<[Slot]>,
    /// By slot: the next one of its chain.
    next: Box<[AtomicU32]>,
    /// By hash: the first of a chain.
    chains: Box<[AtomicU32]>,
    seed: u64,
    inner: Mutex<Inner<W>>,
}

impl<W> Table<W> {
    /// With so many slots. Who does not know the seed cannot tell which blocks have one hash.
    pub(super) fn new(slots: u32, seed: u64) -> Table<W> {
        let none = |_| AtomicU32::new(NONE);
        let chains = slots.max(1).next_power_of_two();
        Table {
            slots: (0..slots).map(|_| Slot::default()).collect(),
            next: (0..slots).map(none).collect(),
            chains: (0..chains).map(none).collect(),
            seed,
            inner: Mutex::new(Inner {
                unused: 0,
                free: Vec::new(),
                filling: HashMap::new(),
                hand: 0,
                taken: 0,
            }),
        }
    }

    fn lock(&self) -> MutexGuard<'_, Inner<W>> {
        // Its owner cannot panic.
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The slot with that number.
    #[inline]
    pub(super) fn slot(&self, number: u32) -> &Slot {
        &self.slots[number as usize]
    }

    /// Slots that have a block, or are to have one.
    pub(super) fn taken(&self) -> u32 {
        self.lock().taken
    }

    /// The chain of a key, by the finalizer of SplitMix64.
    #[inline]
    fn chain(&self, key: u64) -> &AtomicU32 {
        let mut hash = key ^ self.seed;
        hash = (hash ^ hash >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        hash = (hash ^ hash >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        hash ^= hash >> 31;
        &self.chains[hash as usize & (self.chains.len() - 1)]
    }

    /// The slot with this block, pinned. It may be missed while the table changes.
    #[inline]
    pub(super) fn find(&self, key: u64) -> Option<u32> {
        let mut at = self.chain(key).load(Ordering::Relaxed);
        for _ in 0..MAX_STEPS {
            let slot = self.slots.get(at as usize)?;
            match slot.pin(key) {
                Pinned::Yes => {
                    slot.warm();
                    return Some(at);
                }
                Pinned::No => {}
                Pinned::Inherited => self.give_back(&[at]),
            }
            at = self.next[at as usize].load(Ordering::Relaxed);
        }
        None
    }

    /// Looks for a block that was not found, for a waiter that is told when it is there. `is_current` says whether its key is still
    /// that of its file.
    pub(super) fn begin(&self, key: u64, waiter: W, is_current: impl FnOnce() -> bool) -> Begun<W> {
        let mut inner = self.lock();
        if !is_current() {
            return Begun::Refused(waiter);
        }
        let mut at = self.chain(key).load(Ordering::Relaxed);
        while let Some(slot) = self.slots.get(at as usize) {
            if slot.key() == key {
                if let Some(filling) = inner.filling.get_mut(&at) {
                    filling.waiters.push(waiter);
                    return Begun::Waits;
                }
                // Under the lock nobody withdraws it.
                if slot.pin(key) == Pinned::Yes {
                    slot.warm();
                    return Begun::Ready(at);
                }
            }
            at = self.next[at as usize].load(Ordering::Relaxed);
        }
        let Some(at) = self.take_slot(&mut inner) else { return Begun::Refused(waiter) };
        self.slots[at as usize].set_key(key);
        let chain = self.chain(key);
        self.next[at as usize].store(chain.load(Ordering::Relaxed), Ordering::Relaxed);
        chain.store(at, Ordering::Relaxed);
        let waiters = SmallVec::from_iter([waiter]);
        inner.filling.insert(at, Filling { waiters, forgotten: false });
        Begun::Fill(at)
    }

    /// An exclusive slot that is in no chain.
    fn take_slot(&self, inner: &mut Inner<W>) -> Option<u32> {
        if let Some(at) = inner.free.pop() {
            inner.taken += 1;
            return Some(at);
        }
        if (inner.unused as usize) < self.slots.len() {
            inner.unused += 1;
            inner.taken += 1;
            return Some(inner.unused - 1);
        }
        let at = self.evict(inner)?;
        self.unlink(at);
        Some(at)
    }

    /// Takes the slot of a block that was not used of late, or else of the one that was used least among those that are looked at.
    fn evict(&self, inner: &mut Inner<W>) -> Option<u32> {
        let slots = self.slots.len();
        let mut coolest = None;
        for _ in 0..MAX_LOOKS.min(slots * 2) {
            let at = inner.hand;
            inner.hand = (inner.hand + 1) % slots as u32;
            let slot = &self.slots[at as usize];
            if !slot.is_idle() {
                continue;
            }
            let heat = slot.cool();
            if heat == 0 && slot.evict() {
                return Some(at);
            }
            if coolest.is_none_or(|(least, _)| heat < least) {
                coolest = Some((heat, at));
            }
        }
        coolest.map(|(_, at)| at).filter(|at| self.slots[*at as usize].evict())
    }

    /// Takes a slot out of its chain.
    fn unlink(&self, at: u32) {
        let mut link = self.chain(self.slots[at as usize].key());
        loop {
            let next = link.load(Ordering::Relaxed);
            let Some(after) = self.next.get(next as usize) else { return };
            if next == at {
                link.store(after.load(Ordering::Relaxed), Ordering::Relaxed);
                return;
            }
            link = after;
        }
    }

    /// Ends the reading of a block, of which so many bytes were read; `None` if it failed. With the slot pinned for each of those who have
    /// waited, or given up: then it is the caller's, for [`Table::give_back`], and they are to read the block themselves.
    pub(super) fn complete(&self, at: u32, valid: Option<u32>) -> (Waiters<W>, bool) {
        let mut inner = self.lock();
        let Some(Filling { waiters, forgotten }) = inner.filling.remove(&at) else {
            return (Waiters::new(), true);
        };
        let slot = &self.slots[at as usize];
        match valid.filter(|_| !forgotten) {
            Some(valid) => {
                slot.publish(valid, waiters.len() as u32);
                (waiters, true)
            }
            None => {
                self.unlink(at);
                slot.set_key(NO_KEY);
                (waiters, false)
            }
        }
    }

    /// Gives up the reading of a block into a slot that can never be used again.
    pub(super) fn lose(&self, at: u32) -> Waiters<W> {
        self.complete(at, None).0
    }

    /// Takes exclusive slots that are in no chain for other blocks.
    pub(super) fn give_back(&self, slots: &[u32]) {
        let mut inner = self.lock();
        for at in slots {
            self.slots[*at as usize].set_key(NO_KEY);
            inner.taken -= 1;
            inner.free.push(*at);
        }
    }

    /// Forgets the blocks of a file, whose number nobody uses any more for others. Appends the slots that are the caller's now, for
    /// [`Table::give_back`]; those that are pinned or being read are those of who has them.
    pub(super) fn forget(&self, file: u32, exclusive: &mut Vec<u32>) {
        let mut first = 0;
        loop {
            let mut inner = self.lock();
            let end = inner.unused as usize;
            let part = first..(first + SWEEP).min(end);
            for at in part.clone() {
                let slot = &self.slots[at];
                if slot.key() >> BLOCK_BITS != u64::from(file) {
                    continue;
                }
                let at = at as u32;
                if let Some(filling) = inner.filling.get_mut(&at) {
                    filling.forgotten = true;
                    continue;
                }
                match slot.withdraw() {
                    Withdrawn::NotReady => {}
                    Withdrawn::Pinned => self.unlink(at),
                    Withdrawn::Exclusive => {
                        self.unlink(at);
                        exclusive.push(at);
                    }
                }
            }
            first = part.end;
            if first >= end {
                return;
            }
        }
    }
}

#[cfg(test)]
mod tests;
