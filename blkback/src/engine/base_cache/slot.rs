//! One block of the cache's memory: whose bytes it has, and who may use them. A reader pins a slot and looks only then whether it is the
//! block that it wants; whoever fills it has it alone. Neither waits for the other.
//!
//! A slot is *exclusive* (free, or being filled), *ready* with a number of pins, or *doomed* with pins: nobody pins it any more, and who
//! unpins it last has it alone.

use super::atomic::{AtomicU32, AtomicU64, Ordering};

/// No block has this key.
pub(super) const NO_KEY: u64 = 0;

/// Its bytes are those of the block with its key.
const READY: u32 = 1 << 31;
/// It was withdrawn while it was pinned.
const DOOMED: u32 = 1 << 30;

/// Hits that are remembered of a block.
const MAX_HEAT: u32 = 3;

/// What a slot became that was withdrawn.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Withdrawn {
    /// It is the caller's alone.
    Exclusive,
    /// It will be that of who unpins it last.
    Pinned,
    /// It was not ready.
    NotReady,
}

/// A slot.
#[derive(Debug)]
pub(super) struct Slot {
    /// [`READY`] or [`DOOMED`] and the pins; 0 while it is exclusive.
    state: AtomicU32,
    key: AtomicU64,
    /// Bytes of the block, from its first one on.
    valid: AtomicU32,
    /// How often the block was used of late.
    heat: AtomicU32,
}

impl Default for Slot {
    fn default() -> Slot {
        Slot {
            state: AtomicU32::new(0),
            key: AtomicU64::new(NO_KEY),
            valid: AtomicU32::new(0),
            heat: AtomicU32::new(0),
        }
    }
}

impl Slot {
    /// Pins the slot if it has the block with this key: its bytes stay until [`Slot::unpin`].
    #[inline]
    pub(super) fn pin(&self, key: u64) -> Pinned {
        let mut state = self.state.load(Ordering::Relaxed);
        loop {
            if state & READY == 0 || self.key.load(Ordering::Relaxed) != key {
                return Pinned::No;
            }
            match self.state.compare_exchange_weak(state, state + 1, Ordering::Acquire, Ordering::Relaxed) {
                Ok(_) => break,
                Err(now) => state = now,
            }
        }
        // It may have become another block's between the two looks.
        match self.key.load(Ordering::Relaxed) == key {
            true => Pinned::Yes,
            false if self.unpin() => Pinned::Inherited,
            false => Pinned::No,
        }
    }

    /// Ends a pin; `true` if the slot was doomed, and is the caller's alone now.
    #[inline]
    pub(super) fn unpin(&self) -> bool {
        self.state.fetch_sub(1, Ordering::AcqRel) == DOOMED + 1
    }

    /// Of a pinned slot: how many bytes of the block it has.
    #[inline]
    pub(super) fn valid(&self) -> usize {
        self.valid.load(Ordering::Relaxed) as usize
    }

    /// The key of its block, as far as nobody changes it meanwhile.
    pub(super) fn key(&self) -> u64 {
        self.key.load(Ordering::Relaxed)
    }

    /// Gives an exclusive slot to a block, or to none.
    pub(super) fn set_key(&self, key: u64) {
        self.key.store(key, Ordering::Relaxed);
        self.heat.store(0, Ordering::Relaxed);
    }

    /// Makes an exclusive slot ready, with so many bytes of its block, and pins it so often.
    pub(super) fn publish(&self, valid: u32, pins: u32) {
        self.valid.store(valid, Ordering::Relaxed);
        self.state.store(READY + pins, Ordering::Release);
    }

    /// Whether it is ready and nobody has pinned it, as it was a moment ago.
    pub(super) fn is_idle(&self) -> bool {
        self.state.load(Ordering::Relaxed) == READY
    }

    /// Takes a ready slot that nobody has pinned; `false` if it is none.
    pub(super) fn evict(&self) -> bool {
        self.state.compare_exchange(READY, 0, Ordering::Acquire, Ordering::Relaxed).is_ok()
    }

    /// Withdraws a ready slot, pinned or not.
    pub(super) fn withdraw(&self) -> Withdrawn {
        let mut state = self.state.load(Ordering::Relaxed);
        loop {
            let pins = match state & READY {
                0 => return Withdrawn::NotReady,
                _ => state - READY,
            };
            let next = if pins == 0 { 0 } else { DOOMED + pins };
            match self.state.compare_exchange(state, next, Ordering::Acquire, Ordering::Relaxed) {
                Ok(_) if pins == 0 => return Withdrawn::Exclusive,
                Ok(_) => return Withdrawn::Pinned,
                Err(now) => state = now,
            }
        }
    }

    /// Remembers that the block was used.
    #[inline]
    pub(super) fn warm(&self) {
        let heat = self.heat.load(Ordering::Relaxed);
        // One that is used often is only read.
        if heat < MAX_HEAT {
            self.heat.store(heat + 1, Ordering::Relaxed);
        }
    }

    /// Forgets one use; returns how many there were.
    pub(super) fn cool(&self) -> u32 {
        let heat = self.heat.load(Ordering::Relaxed);
        if heat > 0 {
            self.heat.store(heat - 1, Ordering::Relaxed);
        }
        heat
    }
}

/// Whether a slot was pinned.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Pinned {
    /// It is, and has the block.
    Yes,
    /// It has not the block.
    No,
    /// It has not the block, and was doomed meanwhile: it is the caller's alone.
    Inherited,
}
