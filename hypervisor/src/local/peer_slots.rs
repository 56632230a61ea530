//! A domain's peers by number, found without a lock.

use super::peer_slot::PeerSlot;
use super::session::Session;
use ring_abi::DomId;
use std::sync::{Arc, OnceLock};

/// Slots in one part of the table.
const PART: usize = 64;
type Part = Box<[OnceLock<Arc<PeerSlot>>; PART]>;

/// The slots of all peers that were ever used.
pub(super) struct PeerSlots {
    parts: Box<[OnceLock<Part>]>,
    session: Arc<Session>,
}

impl PeerSlots {
    pub(super) fn new(session: Arc<Session>) -> Self {
        let parts = usize::from(DomId::FIRST_RESERVED.0).div_ceil(PART);
        Self { parts: (0..parts).map(|_| OnceLock::new()).collect(), session }
    }

    /// The slot of `peer`, created on first use; `None` if no domain can have that number.
    #[inline]
    pub(super) fn slot(&self, peer: DomId) -> Option<&Arc<PeerSlot>> {
        let part = self.parts.get(usize::from(peer.0) / PART)?;
        let part = part.get_or_init(|| Box::new([const { OnceLock::new() }; PART]));
        let slot = &part[usize::from(peer.0) % PART];
        Some(slot.get_or_init(|| Arc::new(PeerSlot::new(peer, self.session.clone()))))
    }

    /// Unmaps unused arenas of exited peers. A backend often unmaps its pages before the broker retires the arena.
    pub(super) fn unmap_retired(&self) {
        let parts = self.parts.iter().filter_map(OnceLock::get);
        let slots = parts.flat_map(|part| part.iter()).filter_map(OnceLock::get);
        slots.for_each(|slot| slot.lock().unmap_retired());
    }
}
