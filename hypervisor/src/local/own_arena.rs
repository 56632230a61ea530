//! The owner's side of an arena. Which pages and references are allocated is private: the peer sees only the grant
//! table.
#![allow(unsafe_code)] // Creates values whose contract is that their memory stays mapped.

use super::arena::Arena;
use super::entry::Entry;
use super::layout::Layout;
use super::membership::Membership;
use super::range_allocator::RangeAllocator;
use crate::{Error, Result};
use fixedbitset::FixedBitSet;
use grant_table::EndAccess;
use grant_table::{Access, Shared};
use ring_abi::grant::Status;
use ring_abi::{DomId, GrantRef, PAGE_SIZE};
use std::sync::{Arc, Mutex, MutexGuard};

/// This domain's arena for one peer.
pub(super) struct OwnArena {
    pub(super) arena: Arena,
    pub(super) peer: DomId,
    state: Mutex<ArenaState>,
    /// Keeps this domain a member while anything is shared.
    _membership: Arc<Membership>,
}

/// The allocation state of an arena.
pub(super) struct ArenaState {
    pub(super) pages: RangeAllocator,
    pub(super) refs: RangeAllocator,
    /// Frames that may no longer be zero.
    pub(super) dirty: FixedBitSet,
    /// Ended grants that the peer still has mapped: reference and frame.
    quarantine: Vec<(GrantRef, u32)>,
    /// Frames given up for the peer to take over.
    pub(super) ballooned: FixedBitSet,
    /// The owner's index into the balloon queue.
    pub(super) produced: u32,
    /// For each frame given up, its index in the balloon queue. Empty until the first.
    pub(super) queued_at: Vec<u32>,
    /// References that accept a page.
    pub(super) accepting: FixedBitSet,
    /// How many these are.
    pub(super) accepting_count: usize,
    /// How many frames are in `ballooned`.
    pub(super) given_up: usize,
    /// The exits of the peer's processes that were seen.
    pub(super) exits: u32,
}

impl OwnArena {
    pub(super) fn new(layout: Layout, peer: DomId, membership: Arc<Membership>) -> Result<Self> {
        let state = ArenaState {
            pages: RangeAllocator::new(layout.first(), layout.pages()),
            refs: RangeAllocator::new(GrantRef::FIRST_FREE.0, layout.entries()),
            dirty: FixedBitSet::with_capacity(layout.pages() as usize),
            quarantine: Vec::new(),
            ballooned: FixedBitSet::with_capacity(layout.pages() as usize),
            produced: 0,
            queued_at: Vec::new(),
            accepting: FixedBitSet::with_capacity(layout.entries() as usize),
            accepting_count: 0,
            given_up: 0,
            exits: 0,
        };
        Ok(Self { arena: Arena::create(layout)?, peer, state: Mutex::new(state), _membership: membership })
    }

    pub(super) fn state(&self) -> MutexGuard<'_, ArenaState> {
        // A panic cannot leave it inconsistent: no code under the lock panics between two related changes.
        self.state.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    pub(super) fn entry(&self, gref: GrantRef) -> &Entry {
        self.arena.entry(gref).expect("allocated references are in the table")
    }

    /// The number of pages in quarantine.
    pub(super) fn quarantined(&self) -> usize {
        self.state().quarantine.len()
    }

    /// Allocates pages and grants them to the peer.
    ///
    /// # Errors
    /// [`Error::NoSpace`] without enough consecutive pages or references.
    pub(super) fn share(self: &Arc<Self>, pages: usize, access: Access) -> Result<Shared> {
        let count = u32::try_from(pages).map_err(|_| Error::NoSpace("pages"))?;
        let (first, refs) = self.reserve(count)?;
        let base = self.arena.page(first).expect("allocated frames are grantable");
        for (frame, gref) in (first..).zip(&refs) {
            self.entry(*gref).permit(self.peer, frame, access == Access::ReadOnly);
        }
        let grants = Grants { arena: self.clone(), refs: refs.clone(), first };
        // SAFETY: `count` consecutive pages of the arena, used by nothing else and zeroed by `reserve`, that
        // `grants` keeps mapped.
        Ok(unsafe { Shared::new(base, refs, access, Box::new(grants)) })
    }

    /// Allocates consecutive zeroed pages, and as many references.
    fn reserve(&self, count: u32) -> Result<(u32, Box<[GrantRef]>)> {
        let mut state = self.state();
        state.release_quarantine(&self.arena);
        if state.refs.available() < count {
            return Err(Error::NoSpace("grant references"));
        }
        let first = state.pages.allocate(count).ok_or(Error::NoSpace("pages"))?;
        let refs =
            (0..count).map(|_| GrantRef(state.refs.allocate(1).expect("enough are available"))).collect();
        for frame in first..first + count {
            if state.dirty.put(frame as usize) {
                self.zero(frame);
            }
        }
        Ok((first, refs))
    }

    fn zero(&self, frame: u32) {
        let page = self.arena.page(frame).expect("allocated frames are grantable");
        // SAFETY: a whole page of the arena, allocated and not yet granted. The peer has the arena mapped and may write it all the same.
        unsafe { shared_copy::zero(page.as_ptr(), PAGE_SIZE) };
    }

    /// Ends grants and frees their pages; those that the peer still has mapped are quarantined.
    fn end_access(&self, first: u32, refs: &[GrantRef]) -> Result<()> {
        let mut state = self.state();
        let mut in_use = None;
        for (frame, gref) in (first..).zip(refs) {
            if self.entry(*gref).revoke() {
                state.pages.free(frame);
                state.refs.free(gref.0);
            } else {
                state.quarantine.push((*gref, frame));
                in_use = in_use.or(Some(*gref));
            }
        }
        in_use.map_or(Ok(()), |gref| Err(Error::Grant { peer: self.peer, gref, status: Status::EAGAIN }))
    }
}

impl ArenaState {
    /// Frees the quarantined pages that the peer has unmapped.
    fn release_quarantine(&mut self, arena: &Arena) {
        let Self { quarantine, pages, refs, .. } = self;
        quarantine.retain(|(gref, frame)| {
            let free = arena.entry(*gref).is_some_and(Entry::revoke);
            if free {
                pages.free(*frame);
                refs.free(gref.0);
            }
            !free
        });
    }

    /// Removes a frame that the peer transferred back from `ballooned`; `false` if it was not given up.
    pub(super) fn end_balloon(&mut self, frame: u32) -> bool {
        let ballooned = self.ballooned.contains(frame as usize);
        if ballooned {
            self.ballooned.remove(frame as usize);
            self.given_up -= 1;
        }
        ballooned
    }
}

/// Grants of consecutive pages, for [`Shared`].
struct Grants {
    arena: Arc<OwnArena>,
    refs: Box<[GrantRef]>,
    first: u32,
}

impl EndAccess for Grants {
    fn end_access(&mut self) -> grant_table::Result<()> {
        Ok(self.arena.end_access(self.first, &self.refs)?)
    }

    fn is_live(&self) -> bool {
        !self.arena.arena.is_retired()
    }
}
