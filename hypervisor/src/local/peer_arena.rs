//! One arena of a peer, mapped: what it granted to us, what of it we hold, and what we own in it.

use super::arena::Arena;
use super::flip::Flips;
use super::pins::Pins;
use crate::Result;
use ring_abi::{DomId, GrantRef};
use std::ptr::NonNull;

/// Somebody else's arena for us. Used under its slot's lock.
#[derive(Debug)]
pub(super) struct PeerArena {
    pub(super) arena: Arena,
    pub(super) me: DomId,
    pins: Pins,
    pub(super) flips: Flips,
    /// Tells this arena from others of the same peer, before and after.
    pub(super) generation: u32,
    /// How many pins and owned pages are out: while there are any, the arena stays mapped.
    pub(super) out: u64,
}

impl PeerArena {
    pub(super) fn new(arena: Arena, me: DomId) -> Result<Self> {
        let pins = Pins::new(arena.layout().entries())?;
        Ok(Self { arena, me, pins, flips: Flips::default(), generation: 0, out: 0 })
    }

    /// Pins one granted page.
    ///
    /// # Errors
    /// `GNTST_*`.
    #[inline]
    pub(super) fn pin(&mut self, gref: GrantRef, write: bool) -> std::result::Result<NonNull<u8>, i16> {
        let base = self.pins.pin(&self.arena, self.me, gref, write)?;
        self.out += 1;
        Ok(base)
    }

    /// Undoes one pin.
    #[inline]
    pub(super) fn unpin(&mut self, gref: GrantRef, write: bool) {
        self.pins.unpin(&self.arena, gref, write);
        self.out = self.out.saturating_sub(1);
    }
}
