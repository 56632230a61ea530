//! The owner's side of an arena: which pages and references are used is private; peers see the table only.
#![allow(unsafe_code)] // Makes values that promise mapped memory.

use super::arena::Arena;
use super::entry::{AGAIN, Entry};
use super::layout::Layout;
use super::range_allocator::{RangeAllocator, Set};
use super::session::Session;
use crate::share::EndAccess;
use crate::{Access, Error, Result, Shared};
use ring_abi::{DomId, GrantRef, PAGE_SIZE};
use std::sync::{Arc, Mutex, MutexGuard};

/// An arena of ours for one peer.
pub(super) struct OwnArena {
    pub(super) arena: Arena,
    pub(super) peer: DomId,
    state: Mutex<ArenaState>,
    /// What the broker is told by: while something is shared, this domain is alive.
    _session: Arc<Session>,
}

/// What of the arena is used, and by what.
pub(super) struct ArenaState {
    pub(super) pages: RangeAllocator,
    pub(super) refs: RangeAllocator,
    /// Pages that are not zero any more.
    pub(super) touched: Set,
    /// Ended grants that the peer still has mapped: reference and frame.
    held: Vec<(GrantRef, u32)>,
    /// Frames given up for the peer to flip with.
    pub(super) given: Set,
    /// Our index into the balloon's queue.
    pub(super) produced: u32,
}

impl OwnArena {
    pub(super) fn new(layout: Layout, peer: DomId, session: Arc<Session>) -> Result<Self> {
        let state = ArenaState {
            pages: RangeAllocator::new(layout.first(), layout.pages()),
            refs: RangeAllocator::new(GrantRef::FIRST_FREE.0, layout.entries()),
            touched: Set::new(layout.pages()),
            held: Vec::new(),
            given: Set::new(layout.pages()),
            produced: 0,
        };
        Ok(Self { arena: Arena::create(layout)?, peer, state: Mutex::new(state), _session: session })
    }

    pub(super) fn state(&self) -> MutexGuard<'_, ArenaState> {
        // Nothing in here panics between two changes that belong together.
        self.state.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    pub(super) fn entry(&self, gref: GrantRef) -> &Entry {
        self.arena.entry(gref).expect("we only hand out references of our table")
    }

    /// Pages and references in quarantine.
    pub(super) fn quarantined(&self) -> usize {
        self.state().held.len()
    }

    /// Grants fresh pages to the peer.
    ///
    /// # Errors
    /// [`Error::NoSpace`].
    pub(super) fn share(self: &Arc<Self>, pages: usize, access: Access) -> Result<Shared> {
        let count = u32::try_from(pages).map_err(|_| Error::NoSpace("pages"))?;
        let (first, refs) = self.reserve(count)?;
        let base = self.arena.page(first).expect("allocated frames are grantable");
        for (frame, gref) in (first..).zip(&refs) {
            self.entry(*gref).permit(self.peer, frame, access == Access::ReadOnly);
        }
        let lease = Grants { owner: self.clone(), refs: refs.clone(), first };
        // SAFETY: `count` consecutive pages of the arena, ours alone and zeroed by `reserve`, that `lease` keeps
        // mapped.
        Ok(unsafe { Shared::new(base, refs, access, Box::new(lease)) })
    }

    /// Consecutive zeroed pages, and as many references.
    fn reserve(&self, count: u32) -> Result<(u32, Box<[GrantRef]>)> {
        let mut state = self.state();
        state.sweep(&self.arena);
        if state.refs.left() < count {
            return Err(Error::NoSpace("grant references"));
        }
        let first = state.pages.take(count).ok_or(Error::NoSpace("pages"))?;
        let refs = (0..count).map(|_| GrantRef(state.refs.take(1).expect("enough are left"))).collect();
        for frame in first..first + count {
            if !state.touched.insert(frame) {
                self.zero(frame);
            }
        }
        Ok((first, refs))
    }

    fn zero(&self, frame: u32) {
        let page = self.arena.page(frame).expect("allocated frames are grantable");
        // SAFETY: a whole page of the arena that nobody but us is entitled to.
        unsafe { page.write_bytes(0, PAGE_SIZE) };
    }

    /// Ends grants; what the peer still has mapped goes into quarantine.
    fn end(&self, first: u32, refs: &[GrantRef]) -> Result<()> {
        let mut state = self.state();
        let mut held = None;
        for (frame, gref) in (first..).zip(refs) {
            if self.entry(*gref).revoke() {
                state.pages.put(frame);
                state.refs.put(gref.0);
            } else {
                state.held.push((*gref, frame));
                held = held.or(Some(*gref));
            }
        }
        held.map_or(Ok(()), |gref| Err(Error::Grant { peer: self.peer, gref, status: AGAIN }))
    }
}

impl ArenaState {
    /// Takes back what the peer let go of since its grant ended.
    fn sweep(&mut self, arena: &Arena) {
        let Self { held, pages, refs, .. } = self;
        held.retain(|(gref, frame)| {
            let free = arena.entry(*gref).is_some_and(Entry::revoke);
            if free {
                pages.put(*frame);
                refs.put(gref.0);
            }
            !free
        });
    }
}

/// What keeps pages granted.
struct Grants {
    owner: Arc<OwnArena>,
    refs: Box<[GrantRef]>,
    first: u32,
}

impl EndAccess for Grants {
    fn end(&mut self) -> Result<()> {
        self.owner.end(self.first, &self.refs)
    }
}
