//! Page flipping inside an arena: `GNTTABOP_transfer`, and the balloon queue that supplies its pages.
//!
//! Each side keeps a private list. The owner of the arena accepts only frames that it gave up; the peer's list is in
//! `owned_frames`.
#![allow(unsafe_code)] // Creates values whose contract is that their memory stays mapped.

use super::balloon;
use super::entry::Accepted;
use super::own_arena::{ArenaState, OwnArena};
use super::peer_slot::PeerSlot;
use crate::{Error, Result};
use fixedbitset::FixedBitSet;
use grant_table::{AcceptTransfer, OwnedPage, PageOwner, TransferOp};
use ring_abi::GrantRef;
use ring_abi::grant::Status;
use std::sync::Arc;

impl PeerSlot {
    /// Takes over at most `pages` pages that the owner gave up; `None` if it has no live arena.
    pub(super) fn populate(self: &Arc<Self>, pages: usize, into: &mut Vec<OwnedPage>) -> Option<()> {
        let mut arenas = self.lock();
        let peer_arena = arenas.live()?;
        peer_arena.owned.fill(&peer_arena.arena, pages);
        for _ in 0..pages {
            let Some((frame, serial)) = peer_arena.owned.take() else { break };
            let token = u64::from(peer_arena.generation) << 32 | u64::from(serial);
            let base = peer_arena.arena.page(frame).expect("only grantable frames are taken over");
            peer_arena.in_use += 1;
            // SAFETY: a page of an arena that `self` keeps mapped while pages of it are in use.
            into.push(unsafe { OwnedPage::new(base, frame, token, self.clone()) });
        }
        Some(())
    }

    /// Transfers pages to entries of the peer, under one lock; `None`, and nothing done, if it has no live arena.
    pub(super) fn transfer(&self, ops: &mut [TransferOp]) -> Option<()> {
        let mut arenas = self.lock();
        let peer_arena = arenas.live()?;
        for op in ops {
            op.status = peer_arena.transfer(op).err().unwrap_or(Status::OKAY);
        }
        Some(())
    }
}

impl PageOwner for PeerSlot {
    fn put(&self, frame: u32, token: u64) {
        let mut arenas = self.lock();
        if let Some(peer_arena) = arenas.find((token >> 32) as u32) {
            peer_arena.in_use = peer_arena.in_use.saturating_sub(1);
            peer_arena.owned.put_back(frame, token as u32);
        }
        arenas.unmap_retired();
    }
}

impl OwnArena {
    /// Gives up at most `pages` unused pages; returns how many.
    pub(super) fn balloon_out(&self, pages: usize) -> usize {
        self.give_up(&mut self.state(), pages)
    }

    /// Gives up pages until there is one for each entry that accepts a page and for `entries` more; returns for how many
    /// there is none.
    pub(super) fn provide(&self, entries: usize) -> usize {
        let state = &mut *self.state();
        self.reclaim(state);
        debug_assert_eq!(state.given_up, state.ballooned.count_ones(..), "a page has one owner");
        debug_assert_eq!(state.accepting_count, state.accepting.count_ones(..));
        let wanted = state.accepting_count + entries;
        let missing = wanted.saturating_sub(state.given_up);
        missing - self.give_up(state, missing)
    }

    fn give_up(&self, state: &mut ArenaState, pages: usize) -> usize {
        state.queued_at.resize(self.arena.layout().pages() as usize, 0);
        let mut frames = [0; 64];
        let mut total = 0;
        while total < pages {
            let wanted = frames.len().min(pages - total);
            let allocated = frames[..wanted].iter_mut().map_while(|frame| {
                *frame = state.pages.allocate(1)?;
                Some(())
            });
            let allocated = allocated.count();
            let first = state.produced;
            let pushed = balloon::push(&self.arena, &mut state.produced, &frames[..allocated]);
            for (n, frame) in frames[..allocated].iter().enumerate() {
                if n < pushed {
                    state.dirty.insert(*frame as usize);
                    state.ballooned.insert(*frame as usize);
                    state.queued_at[*frame as usize] = first.wrapping_add(n as u32);
                } else {
                    state.pages.free(*frame);
                }
            }
            total += pushed;
            if pushed < wanted {
                break;
            }
        }
        state.given_up += total;
        total
    }

    /// Takes back every page that was given up and not transferred back; returns how many.
    pub(super) fn balloon_in(&self) -> usize {
        let state = &mut *self.state();
        balloon::reset(&self.arena, &mut state.produced);
        let freed = state.ballooned.ones().filter(|frame| state.pages.free(*frame as u32)).count();
        state.ballooned.clear();
        state.given_up = 0;
        freed
    }

    /// Takes back the pages that the peer's processes owned when they exited, if any has exited since the last call. Pages
    /// that they had transferred stay where they are. Transfers that they had begun and not completed never are completed.
    fn reclaim(&self, state: &mut ArenaState) {
        let exits = balloon::exits(&self.arena);
        if std::mem::replace(&mut state.exits, exits.count) == exits.count {
            return;
        }
        let mut transferred = FixedBitSet::with_capacity(self.arena.layout().pages() as usize);
        for gref in state.accepting.ones() {
            let entry = self.entry(GrantRef(gref as u32));
            match entry.accepted() {
                Accepted::Page(frame) if self.arena.layout().grantable(frame) => {
                    transferred.insert(frame as usize)
                }
                Accepted::Committed => entry.accept(self.peer),
                Accepted::Page(_) | Accepted::Waiting => {}
            }
        }
        let ArenaState { ballooned, pages, queued_at, given_up, .. } = state;
        let lost = |frame: &usize| exits.took(queued_at[*frame]) && !transferred.contains(*frame);
        let lost: Vec<usize> = ballooned.ones().filter(lost).collect();
        for frame in lost {
            ballooned.remove(frame);
            pages.free(frame as u32);
            *given_up -= 1;
        }
    }

    /// Allocates entries that accept pages from the peer.
    ///
    /// # Errors
    /// [`Error::NoSpace`] without enough references.
    pub(super) fn accept_transfer(self: &Arc<Self>, entries: usize) -> Result<Box<dyn AcceptTransfer>> {
        let mut state = self.state();
        if entries > state.refs.available() as usize {
            return Err(Error::NoSpace("grant references"));
        }
        let refs =
            (0..entries).map(|_| GrantRef(state.refs.allocate(1).expect("enough are available"))).collect();
        drop(state);
        let mut accepting = Accepting { arena: self.clone(), refs, armed: vec![false; entries].into() };
        (0..entries).for_each(|n| accepting.arm(n));
        Ok(Box::new(accepting))
    }

    /// Stops counting an entry among those that accept a page.
    fn ends_accepting(state: &mut ArenaState, gref: GrantRef) {
        state.accepting.remove(gref.0 as usize);
        state.accepting_count -= 1;
    }
}

impl PageOwner for OwnArena {
    fn put(&self, frame: u32, _token: u64) {
        self.state().pages.free(frame);
    }
}

/// Entries of an own arena that accept pages.
struct Accepting {
    arena: Arc<OwnArena>,
    refs: Box<[GrantRef]>,
    armed: Box<[bool]>,
}

impl AcceptTransfer for Accepting {
    fn refs(&self) -> &[GrantRef] {
        &self.refs
    }

    fn take(&mut self, index: usize) -> grant_table::Result<Option<OwnedPage>> {
        if !self.armed[index] {
            return Ok(None);
        }
        let gref = self.refs[index];
        let entry = self.arena.entry(gref);
        // Held from here on, so that the page is never neither in an entry nor taken: see `reclaim`.
        let mut state = self.arena.state();
        let Accepted::Page(frame) = entry.accepted() else { return Ok(None) };
        entry.clear();
        self.armed[index] = false;
        OwnArena::ends_accepting(&mut state, gref);
        let expected = state.end_balloon(frame);
        drop(state);
        let base = self.arena.arena.page(frame).filter(|_| expected).ok_or_else(|| {
            Error::Protocol(format!(
                "domain {} transferred frame {frame}, which it did not own",
                self.arena.peer
            ))
        })?;
        // SAFETY: a page of the arena, which `self.arena` keeps mapped.
        Ok(Some(unsafe { OwnedPage::new(base, frame, 0, self.arena.clone()) }))
    }

    fn arm(&mut self, index: usize) {
        if !self.armed[index] {
            self.armed[index] = true;
            let gref = self.refs[index];
            let mut state = self.arena.state();
            state.accepting.insert(gref.0 as usize);
            state.accepting_count += 1;
            self.arena.entry(gref).accept(self.arena.peer);
        }
    }
}

impl Drop for Accepting {
    fn drop(&mut self) {
        // Entries to which an exited process of the peer committed a page accept again.
        self.arena.reclaim(&mut self.arena.state());
        for n in 0..self.refs.len() {
            let gref = self.refs[n];
            if !self.armed[n] {
                self.arena.state().refs.free(gref.0);
            } else if self.arena.entry(gref).refuse() {
                let mut state = self.arena.state();
                OwnArena::ends_accepting(&mut state, gref);
                state.refs.free(gref.0);
            } else if self.take(n).is_ok_and(|page| page.is_some()) {
                // A page that arrived before the entry was refused was taken, and dropped, which frees it.
                self.arena.state().refs.free(gref.0);
            }
            // An entry to which the peer committed a transfer that it did not complete is never reused.
        }
    }
}
