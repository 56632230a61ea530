//! A domain's peers by number, found without a lock.

use super::membership::Membership;
use super::peer_slot::PeerSlot;
use ring_abi::DomId;
use std::sync::{Arc, OnceLock};

/// Slots in one part of the table.
const PART: usize = 64;
type Part = Box<[OnceLock<Arc<PeerSlot>>; PART]>;

/// The slots of all peers that were ever used.
pub(super) struct PeerSlots {
    parts: Box<[OnceLock<Part>]>,
    membership: Arc<Membership>,
}

impl PeerSlots {
    pub(super) fn new(membership: Arc<Membership>) -> Self {
        let parts = usize::from(DomId::FIRST_RESERVED.0).div_ceil(PART);
        Self { parts: (0..parts).map(|_| OnceLock::new()).collect(), membership }
    }

    /// The slot of `peer`, created on first use; `None` if no domain can have that number.
    #[inline]
    pub(super) fn slot(&self, peer: DomId) -> Option<&Arc<PeerSlot>> {
        let part = self.parts.get(usize::from(peer.0) / PART)?;
        let part = part.get_or_init(|| Box::new([const { OnceLock::new() }; PART]));
        let slot = &part[usize::from(peer.0) % PART];
        Some(slot.get_or_init(|| Arc::new(PeerSlot::new(peer, self.membership.clone()))))
    }

    /// Unmaps unused arenas of exited peers. A backend often unmaps its pages before the broker retires the arena.
    pub(super) fn unmap_retired(&self) {
        self.all().for_each(|slot| slot.lock().unmap_retired());
    }

    /// The peers of which an arena is in use.
    pub(super) fn mapped(&self) -> impl Iterator<Item = &Arc<PeerSlot>> {
        self.all().filter(|slot| slot.is_live())
    }

    fn all(&self) -> impl Iterator<Item = &Arc<PeerSlot>> {
        let parts = self.parts.iter().filter_map(OnceLock::get);
        parts.flat_map(|part| part.iter()).filter_map(OnceLock::get)
    }
}
