//! One version 1 grant entry, `struct grant_entry_v1` (grant_table.h:190), as the atomics that both sides use.
//!
//! The flags and the domain share a word that is changed by compare-and-exchange alone, as Xen does it; the peer may
//! change any of it at any time, so that every operation works on one read of it and is bounded.

use ring_abi::DomId;
use std::sync::atomic::{AtomicU32, Ordering};

const TYPE_MASK: u32 = 3;
const PERMIT_ACCESS: u32 = 1;
const ACCEPT_TRANSFER: u32 = 2;
const READONLY: u32 = 1 << 2;
const READING: u32 = 1 << 3;
const WRITING: u32 = 1 << 4;
const PINNED: u32 = READING | WRITING;
const COMMITTED: u32 = 1 << 2;
const COMPLETED: u32 = 1 << 3;
/// `GTF_sub_page` and what is above in the 16 bits of flags.
const FLAGS: u32 = 0xffff;

/// `GNTST_general_error`: the entry's flags or domain are not what the operation needs.
pub(super) const GENERAL_ERROR: i16 = -1;
/// `GNTST_bad_gntref`.
pub(super) const BAD_REF: i16 = -3;
/// `GNTST_bad_page`: a frame number that is no grantable page.
pub(super) const BAD_PAGE: i16 = -9;
/// `GNTST_bad_copy_arg`: crosses a page's border.
pub(super) const BAD_COPY: i16 = -10;
/// `GNTST_eagain`.
pub(super) const AGAIN: i16 = -12;

/// Attempts at an entry that somebody else keeps changing, as Xen's `_set_status_v1` (common/grant_table.c).
const RETRIES: u32 = 5;

/// `grant_entry_v1`: flags in the low half of the first word, the domain in the high half, then the frame.
#[repr(C)]
#[derive(Debug, Default)]
pub struct Entry {
    head: AtomicU32,
    frame: AtomicU32,
}

const _: () = assert!(size_of::<Entry>() == 8);

/// What became of an entry that accepts a transfer.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Accepted {
    /// Nothing yet.
    Waiting,
    /// The peer began, and is about to name the page.
    Committed,
    /// This frame, by the peer's word.
    Page(u32),
}

fn head(domid: DomId, flags: u32) -> u32 {
    u32::from(domid.0) << 16 | flags
}

impl Entry {
    /// Owner: lets `domid` map `frame`.
    pub fn permit(&self, domid: DomId, frame: u32, readonly: bool) {
        self.frame.store(frame, Ordering::Relaxed);
        let flags = PERMIT_ACCESS | if readonly { READONLY } else { 0 };
        self.head.store(head(domid, flags), Ordering::Release);
    }

    /// Owner: ends access. `true` if the entry is free now; otherwise the peer still holds the page, nobody can map
    /// it anew, and [`Entry::idle`] says when the last one let go.
    pub fn revoke(&self) -> bool {
        let mut now = self.head.load(Ordering::Relaxed);
        // A peer that never lets the exchange succeed is as good as one that holds the page.
        for _ in 0..RETRIES {
            let next = if now & PINNED == 0 { 0 } else { now & !TYPE_MASK };
            match self.head.compare_exchange(now, next, Ordering::AcqRel, Ordering::Relaxed) {
                Ok(_) => return next == 0,
                Err(other) => now = other,
            }
        }
        false
    }

    /// Owner: whether nobody has the page mapped; `Acquire`, so that it may be used again.
    #[cfg(test)]
    pub(super) fn idle(&self) -> bool {
        self.head.load(Ordering::Acquire) & PINNED == 0
    }

    /// Owner: forgets what is in the entry.
    pub fn clear(&self) {
        self.head.store(0, Ordering::Release);
    }

    /// Owner: accepts a page from `domid`.
    pub fn accept(&self, domid: DomId) {
        self.frame.store(0, Ordering::Relaxed);
        self.head.store(head(domid, ACCEPT_TRANSFER), Ordering::Release);
    }

    /// Owner: what was transferred.
    pub fn accepted(&self) -> Accepted {
        let now = self.head.load(Ordering::Acquire);
        match (now & COMMITTED != 0, now & COMPLETED != 0) {
            (true, true) => Accepted::Page(self.frame.load(Ordering::Relaxed)),
            (true, false) => Accepted::Committed,
            _ => Accepted::Waiting,
        }
    }

    /// Owner: no longer accepts; `false` if a transfer was committed before.
    pub fn refuse(&self) -> bool {
        let now = self.head.load(Ordering::Relaxed);
        now & COMMITTED == 0
            && self.head.compare_exchange(now, 0, Ordering::AcqRel, Ordering::Relaxed).is_ok()
    }

    /// Peer `domid`: marks the page as being read, and written if `write`, and gives the frame number.
    ///
    /// # Errors
    /// `GNTST_*`: the entry does not permit it, or keeps changing.
    #[inline]
    pub fn pin(&self, domid: DomId, write: bool) -> Result<u32, i16> {
        let (set, mask) = if write { (PINNED, TYPE_MASK | READONLY) } else { (READING, TYPE_MASK) };
        let wanted = head(domid, PERMIT_ACCESS);
        let mut now = self.head.load(Ordering::Relaxed);
        for _ in 0..RETRIES {
            if now & (mask | !FLAGS) != wanted {
                return Err(GENERAL_ERROR);
            }
            match self.head.compare_exchange(now, now | set, Ordering::AcqRel, Ordering::Relaxed) {
                Ok(_) => return Ok(self.frame.load(Ordering::Relaxed)),
                Err(other) => now = other,
            }
        }
        Err(GENERAL_ERROR)
    }

    /// Peer: the frame of an entry that it has pinned.
    #[inline]
    pub fn frame(&self) -> u32 {
        self.frame.load(Ordering::Relaxed)
    }

    /// Peer: the page is not written any more, or neither written nor read.
    #[inline]
    pub fn unpin(&self, reading: bool) {
        self.head.fetch_and(if reading { !PINNED } else { !WRITING }, Ordering::Release);
    }

    /// Peer `domid`: begins a transfer.
    ///
    /// # Errors
    /// `GNTST_*`: the entry does not accept a page from it, or accepted one already.
    pub fn commit(&self, domid: DomId) -> Result<(), i16> {
        let wanted = head(domid, ACCEPT_TRANSFER);
        let next = wanted | COMMITTED;
        self.head
            .compare_exchange(wanted, next, Ordering::AcqRel, Ordering::Relaxed)
            .map_or(Err(GENERAL_ERROR), |_| Ok(()))
    }

    /// Peer: names the page of a transfer that it committed.
    pub fn complete(&self, frame: u32) {
        self.frame.store(frame, Ordering::Relaxed);
        self.head.fetch_or(COMPLETED, Ordering::Release);
    }

    /// Broker: lets go for a peer that died.
    pub fn release(&self) {
        if self.head.load(Ordering::Relaxed) & TYPE_MASK != ACCEPT_TRANSFER {
            self.head.fetch_and(!PINNED, Ordering::Release);
        }
    }

    /// Broker: marks the arena as retired; for the reserved entry that no domain is granted.
    pub fn retire(&self) {
        self.frame.store(1, Ordering::Release);
    }

    /// Whether the broker did.
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
    fn a_pinned_entry_is_not_free() {
        let entry = Entry::default();
        entry.permit(PEER, 9, false);
        assert_eq!(entry.pin(PEER, true), Ok(9));
        assert!(!entry.revoke());
        assert_eq!(entry.pin(PEER, false), Err(GENERAL_ERROR), "mapped anew after its end");
        entry.unpin(false);
        assert!(!entry.idle(), "still read");
        entry.unpin(true);
        assert!(entry.idle());
    }

    #[test]
    fn only_what_was_permitted() {
        let entry = Entry::default();
        assert_eq!(entry.pin(PEER, false), Err(GENERAL_ERROR));
        entry.permit(PEER, 9, true);
        assert_eq!(entry.pin(DomId(4), false), Err(GENERAL_ERROR));
        assert_eq!(entry.pin(PEER, true), Err(GENERAL_ERROR));
        assert_eq!(entry.pin(PEER, false), Ok(9));
        assert_eq!(entry.commit(PEER), Err(GENERAL_ERROR));
        entry.unpin(true);
        assert!(entry.revoke());
    }

    #[test]
    fn a_transfer_happens_once() {
        let entry = Entry::default();
        entry.accept(PEER);
        assert_eq!(entry.commit(DomId(4)), Err(GENERAL_ERROR));
        assert_eq!(entry.accepted(), Accepted::Waiting);
        assert_eq!(entry.commit(PEER), Ok(()));
        assert!(!entry.refuse(), "refused after it began");
        assert_eq!(entry.accepted(), Accepted::Committed);
        assert_eq!(entry.commit(PEER), Err(GENERAL_ERROR));
        entry.complete(77);
        assert_eq!(entry.accepted(), Accepted::Page(77));
        entry.accept(PEER);
        assert!(entry.refuse());
        assert_eq!(entry.commit(PEER), Err(GENERAL_ERROR));
    }

    proptest! {
        /// Whatever the owner's or peer's bytes: a pin is only given where type, domain and read-only allow it.
        #[test]
        fn pins_obey_the_bytes(bytes: u32, frame: u32, domid in 0u16..4, write: bool) {
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
