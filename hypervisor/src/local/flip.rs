//! Page flipping inside an arena: `GNTTABOP_transfer`, and the balloon queue that supplies its pages.
//!
//! Each side keeps a private list. The owner of the arena accepts only frames that it gave up; the peer's list is in
//! `owned_frames`.
#![allow(unsafe_code)] // Creates values whose contract is that their memory stays mapped.

use super::balloon;
use super::entry::Accepted;
use super::own_arena::OwnArena;
use super::peer_slot::PeerSlot;
use crate::{Error, Result};
use grant_table::{AcceptTransfer, OwnedPage, PageOwner};
use ring_abi::GrantRef;
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
        let state = &mut *self.state();
        let mut frames = [0; 64];
        let mut total = 0;
        while total < pages {
            let wanted = frames.len().min(pages - total);
            let allocated = frames[..wanted].iter_mut().map_while(|frame| {
                *frame = state.pages.allocate(1)?;
                Some(())
            });
            let allocated = allocated.count();
            let pushed = balloon::push(&self.arena, &mut state.produced, &frames[..allocated]);
            for (n, frame) in frames[..allocated].iter().enumerate() {
                if n < pushed {
                    state.dirty.insert(*frame as usize);
                    state.ballooned.insert(*frame as usize);
                } else {
                    state.pages.free(*frame);
                }
            }
            total += pushed;
            if pushed < wanted {
                break;
            }
        }
        total
    }

    /// Takes back every page that was given up and not transferred back; returns how many.
    pub(super) fn balloon_in(&self) -> usize {
        let state = &mut *self.state();
        balloon::reset(&self.arena, &mut state.produced);
        let freed = state.ballooned.ones().filter(|frame| state.pages.free(*frame as u32)).count();
        state.ballooned.clear();
        freed
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
        let entry = self.arena.entry(self.refs[index]);
        let Accepted::Page(frame) = entry.accepted() else { return Ok(None) };
        entry.clear();
        self.armed[index] = false;
        let expected = self.arena.state().end_balloon(frame);
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
            self.arena.entry(self.refs[index]).accept(self.arena.peer);
        }
    }
}

impl Drop for Accepting {
    fn drop(&mut self) {
        for n in 0..self.refs.len() {
            let entry = self.arena.entry(self.refs[n]);
            // A page that arrives before the entry is refused is taken, and dropped, which frees it.
            let free = !self.armed[n] || entry.refuse() || self.take(n).is_ok_and(|page| page.is_some());
            // An entry to which the peer committed a transfer that it did not complete is never reused.
            if free {
                self.arena.state().refs.free(self.refs[n].0);
            }
        }
    }
}
