//! A peer's arena, mapped: the pages it granted to this domain, their pins, and the pages this domain owns in it.

use super::arena::Arena;
use super::owned_frames::OwnedFrames;
use super::pins::Pins;
use crate::Result;
use grant_table::TransferOp;
use ring_abi::grant::Status;
use ring_abi::{DomId, GrantRef};
use std::ptr::NonNull;

/// A peer's arena for this domain. Used under the lock of its slot.
#[derive(Debug)]
pub(super) struct PeerArena {
    pub(super) arena: Arena,
    me: DomId,
    pins: Pins,
    pub(super) owned: OwnedFrames,
    /// Distinguishes this arena from earlier and later ones of the same peer.
    pub(super) generation: u32,
    /// Pins and owned pages in use: while there are any, the arena stays mapped.
    pub(super) in_use: u64,
}

impl PeerArena {
    pub(super) fn new(arena: Arena, me: DomId) -> Result<Self> {
        let pins = Pins::new(arena.layout().entries())?;
        Ok(Self { arena, me, pins, owned: OwnedFrames::default(), generation: 0, in_use: 0 })
    }

    /// Pins one granted page.
    ///
    /// # Errors
    /// As [`Pins::pin`].
    #[inline]
    pub(super) fn pin(&mut self, gref: GrantRef, write: bool) -> std::result::Result<NonNull<u8>, Status> {
        let base = self.pins.pin(&self.arena, self.me, gref, write)?;
        self.in_use += 1;
        Ok(base)
    }

    /// Undoes one pin.
    #[inline]
    pub(super) fn unpin(&mut self, gref: GrantRef, write: bool) {
        self.pins.unpin(&self.arena, gref, write);
        self.in_use = self.in_use.saturating_sub(1);
    }

    /// Transfers an owned page to an entry that accepts it.
    ///
    /// # Errors
    /// As [`OwnedFrames::transfer`].
    pub(super) fn transfer(&mut self, op: &TransferOp) -> std::result::Result<(), Status> {
        // A page of an earlier arena of the peer's is not the one of the same number in this arena; no use has number 0.
        let is_current = (op.token >> 32) as u32 == self.generation;
        let use_serial = if is_current { op.token as u32 } else { 0 };
        self.owned.transfer(&self.arena, self.me, op.frame, use_serial, op.gref)
    }
}
