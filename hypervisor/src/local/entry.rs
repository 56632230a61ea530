//! One version 1 grant entry, `struct grant_entry_v1` (grant_table.h:190), as the atomics that both sides use.
//!
//! The flags and the domain share a word that is changed by compare-and-exchange alone, as Xen does it. The peer may
//! change any of it at any time, so that every operation works on one read of it and is bounded.

use super::atomic::{AtomicU32, Ordering};
use ring_abi::DomId;
use ring_abi::grant::Status;
use ring_abi::grant::entry::{Flags, Kind};

const TYPE_MASK: u32 = ring_abi::grant::entry::TYPE_MASK as u32;
const PERMIT_ACCESS: u32 = Kind::PermitAccess as u32;
const ACCEPT_TRANSFER: u32 = Kind::AcceptTransfer as u32;
const READONLY: u32 = Flags::READONLY.bits() as u32;
const READING: u32 = Flags::READING.bits() as u32;
const WRITING: u32 = Flags::WRITING.bits() as u32;
const PINNED: u32 = READING | WRITING;
const COMMITTED: u32 = Flags::TRANSFER_COMMITTED.bits() as u32;
const COMPLETED: u32 = Flags::TRANSFER_COMPLETED.bits() as u32;
/// The half of the first word that holds the type and the flags; the other is the domain.
const FLAGS_MASK: u32 = 0xffff;

/// Attempts to change an entry that the other side keeps changing, as Xen's `_set_status_v1` (common/grant_table.c).
const RETRIES: u32 = 5;

/// `grant_entry_v1`: flags in the low half of the first word, the domain in the high half, then the frame.
#[repr(C)]
#[derive(Debug, Default)]
pub struct Entry {
    head: AtomicU32,
    frame: AtomicU32,
}

/// The state of an entry that accepts a transfer.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Accepted {
    /// No transfer has begun.
    Waiting,
    /// The peer committed to a transfer and has not completed it.
    Committed,
    /// The peer transferred this frame, which is not checked.
    Page(u32),
}

fn head(domid: DomId, flags: u32) -> u32 {
    u32::from(domid.0) << 16 | flags
}

impl Entry {
    /// Owner: permits `domid` to map `frame`.
    pub fn permit(&self, domid: DomId, frame: u32, readonly: bool) {
        self.frame.store(frame, Ordering::Relaxed);
        let flags = PERMIT_ACCESS | if readonly { READONLY } else { 0 };
        self.head.store(head(domid, flags), Ordering::Release);
    }

    /// Owner: ends access. `true` if the entry is free now; otherwise the peer still has the page mapped, it cannot
    /// be mapped again, and `revoke` returns `true` once the peer has unmapped it.
    pub fn revoke(&self) -> bool {
        let mut now = self.head.load(Ordering::Relaxed);
        // A peer that never lets the exchange succeed is treated as one that has the page mapped.
        for _ in 0..RETRIES {
            let next = if now & PINNED == 0 { 0 } else { now & !TYPE_MASK };
            match self.head.compare_exchange(now, next, Ordering::AcqRel, Ordering::Relaxed) {
                Ok(_) => return next == 0,
                Err(other) => now = other,
            }
        }
        false
    }

    /// Owner: whether the page is not mapped.
    #[cfg(test)]
    pub(super) fn idle(&self) -> bool {
        self.head.load(Ordering::Acquire) & PINNED == 0
    }

    /// Owner: clears the entry.
    pub fn clear(&self) {
        self.head.store(0, Ordering::Release);
    }

    /// Owner: accepts a page from `domid`.
    pub fn accept(&self, domid: DomId) {
        self.frame.store(0, Ordering::Relaxed);
        self.head.store(head(domid, ACCEPT_TRANSFER), Ordering::Release);
    }

    /// Owner: the state of a transfer to this entry.
    pub fn accepted(&self) -> Accepted {
        let now = self.head.load(Ordering::Acquire);
        match (now & COMMITTED != 0, now & COMPLETED != 0) {
            (true, true) => Accepted::Page(self.frame.load(Ordering::Relaxed)),
            (true, false) => Accepted::Committed,
            _ => Accepted::Waiting,
        }
    }

    /// Owner: stops accepting a transfer; `false` if one was committed before.
    pub fn refuse(&self) -> bool {
        let now = self.head.load(Ordering::Relaxed);
        now & COMMITTED == 0
            && self.head.compare_exchange(now, 0, Ordering::AcqRel, Ordering::Relaxed).is_ok()
    }

    /// Peer `domid`: marks the page as mapped for reading, and for writing if `write`; returns the frame number.
    ///
    /// # Errors
    /// [`Status::GENERAL_ERROR`]: the entry does not permit it, or keeps changing.
    #[inline]
    pub fn pin(&self, domid: DomId, write: bool) -> Result<u32, Status> {
        let (set, mask) = if write { (PINNED, TYPE_MASK | READONLY) } else { (READING, TYPE_MASK) };
        let wanted = head(domid, PERMIT_ACCESS);
        let mut now = self.head.load(Ordering::Relaxed);
        for _ in 0..RETRIES {
            if now & (mask | !FLAGS_MASK) != wanted {
                return Err(Status::GENERAL_ERROR);
            }
            match self.head.compare_exchange(now, now | set, Ordering::AcqRel, Ordering::Relaxed) {
                Ok(_) => return Ok(self.frame.load(Ordering::Relaxed)),
                Err(other) => now = other,
            }
        }
        Err(Status::GENERAL_ERROR)
    }

    /// Peer: the frame of an entry that it has pinned.
    #[inline]
    pub fn frame(&self) -> u32 {
        self.frame.load(Ordering::Relaxed)
    }

    /// Peer: marks the page as no longer mapped for writing or, if `reading`, as not mapped at all.
    #[inline]
    pub fn unpin(&self, reading: bool) {
        self.head.fetch_and(if reading { !PINNED } else { !WRITING }, Ordering::Release);
    }

    /// Peer `domid`: begins a transfer.
    ///
    /// # Errors
    /// [`Status::GENERAL_ERROR`]: the entry does not accept a page from `domid`, or has one already.
    pub fn commit(&self, domid: DomId) -> Result<(), Status> {
        let wanted = head(domid, ACCEPT_TRANSFER);
        let next = wanted | COMMITTED;
        self.head
            .compare_exchange(wanted, next, Ordering::AcqRel, Ordering::Relaxed)
            .map_or(Err(Status::GENERAL_ERROR), |_| Ok(()))
    }

    /// Peer: completes a committed transfer of `frame`.
    pub fn complete(&self, frame: u32) {
        self.frame.store(frame, Ordering::Relaxed);
        self.head.fetch_or(COMPLETED, Ordering::Release);
    }

    /// Broker: unpins the page for a peer that exited.
    pub fn release(&self) {
        if self.head.load(Ordering::Relaxed) & TYPE_MASK != ACCEPT_TRANSFER {
            self.head.fetch_and(!PINNED, Ordering::Release);
        }
    }

    /// Broker: marks the arena as retired, in a reserved entry that grants nothing.
    pub fn retire(&self) {
        self.frame.store(1, Ordering::Release);
    }

    /// Whether the broker marked the arena as retired, in this reserved entry.
    #[inline]
    pub fn is_retired(&self) -> bool {
        self.frame.load(Ordering::Relaxed) != 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const PEER: DomId = DomId(3);

    #[test]
    fn entry_revoked_while_pinned_is_free_once_unpinned() {
        let entry = Entry::default();
        entry.permit(PEER, 9, false);
        assert_eq!(entry.pin(PEER, true), Ok(9));
        assert!(!entry.revoke());
        assert_eq!(entry.pin(PEER, false), Err(Status::GENERAL_ERROR), "not mapped again after its end");
        entry.unpin(false);
        assert!(!entry.idle(), "still read");
        entry.unpin(true);
        assert!(entry.idle());
    }

    #[test]
    fn pin_of_what_is_not_permitted_is_an_error() {
        let entry = Entry::default();
        assert_eq!(entry.pin(PEER, false), Err(Status::GENERAL_ERROR));
        entry.permit(PEER, 9, true);
        assert_eq!(entry.pin(DomId(4), false), Err(Status::GENERAL_ERROR));
        assert_eq!(entry.pin(PEER, true), Err(Status::GENERAL_ERROR));
        assert_eq!(entry.pin(PEER, false), Ok(9));
        assert_eq!(entry.commit(PEER), Err(Status::GENERAL_ERROR));
        entry.unpin(true);
        assert!(entry.revoke());
    }

    #[test]
    fn transfer_to_an_entry_happens_once() {
        let entry = Entry::default();
        entry.accept(PEER);
        assert_eq!(entry.commit(DomId(4)), Err(Status::GENERAL_ERROR));
        assert_eq!(entry.accepted(), Accepted::Waiting);
        assert_eq!(entry.commit(PEER), Ok(()));
        assert!(!entry.refuse(), "not refused after it was committed");
        assert_eq!(entry.accepted(), Accepted::Committed);
        assert_eq!(entry.commit(PEER), Err(Status::GENERAL_ERROR));
        entry.complete(77);
        assert_eq!(entry.accepted(), Accepted::Page(77));
        entry.accept(PEER);
        assert!(entry.refuse());
        assert_eq!(entry.commit(PEER), Err(Status::GENERAL_ERROR));
    }

    proptest! {
        #[test]
        fn pin_of_an_entry_of_any_bytes_obeys_type_domain_and_flags(
            bytes: u32, frame: u32, domid in 0u16..4, write: bool,
        ) {
            let entry = Entry { head: bytes.into(), frame: frame.into() };
            let allowed = bytes & TYPE_MASK == PERMIT_ACCESS
                && bytes >> 16 == u32::from(domid)
                && !(write && bytes & READONLY != 0);
            prop_assert_eq!(entry.pin(DomId(domid), write).is_ok(), allowed);
            if allowed {
                prop_assert!(!entry.idle());
                entry.unpin(true);
            }
            prop_assert_eq!(entry.head.load(Ordering::Relaxed) & !PINNED, bytes & !PINNED);
        }
    }
}
