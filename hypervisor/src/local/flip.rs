//! Page flipping inside an arena: `GNTTABOP_transfer`, and the balloon queue that supplies its pages.
//!
//! Each side keeps a private list. The owner of the arena accepts only frames that it gave up; the peer transfers
//! only frames that it took over, and takes over only frames that it does not own already.
#![allow(unsafe_code)] // Creates values whose contract is that their memory stays mapped.

use super::balloon;
use super::entry::Accepted;
use super::own_arena::OwnArena;
use super::peer_arena::PeerArena;
use super::peer_slot::PeerSlot;
use crate::{Error, Result};
use grant_table::{AcceptTransfer, OwnedPage, PageOwner};
use ring_abi::GrantRef;
use ring_abi::grant::Status;
use std::sync::Arc;

/// The peer's private list of the frames that it owns in the arena.
#[derive(Debug, Default)]
pub(super) struct Flips {
    /// For each frame the serial number of its takeover, or 0 if this domain does not own it. Empty until the first.
    serials: Vec<u32>,
    /// Owned frames that are not in use.
    pool: Vec<u32>,
    last_serial: u32,
}

impl Flips {
    /// Gives `frame` a new serial number, never 0, so that an older [`OwnedPage`] of it cannot return it.
    fn renew_serial(&mut self, frame: u32) -> u32 {
        self.last_serial = self.last_serial.wrapping_add(1).max(1);
        self.serials[frame as usize] = self.last_serial;
        self.last_serial
    }
}

impl PeerArena {
    /// Takes over pages that the owner gave up until `pages` are in the pool or the queue is empty.
    fn fill_pool(&mut self, pages: usize) {
        let layout = self.arena.layout();
        let flips = &mut self.flips;
        flips.serials.resize(layout.pages() as usize, 0);
        let missing = pages.saturating_sub(flips.pool.len());
        balloon::pop(&self.arena, missing, |frame| {
            if layout.grantable(frame) && flips.serials[frame as usize] == 0 {
                flips.renew_serial(frame);
                flips.pool.push(frame);
            }
        });
    }

    /// Transfers an owned page to an entry that accepts it.
    ///
    /// # Errors
    /// The operation's status: a reference beyond the table, a frame that this domain does not own, or an entry that
    /// does not accept it. The page is still owned then.
    pub(super) fn transfer(&mut self, frame: u64, gref: GrantRef) -> std::result::Result<(), Status> {
        let entry = self.arena.entry(gref).ok_or(Status::BAD_GNTREF)?;
        let serial = usize::try_from(frame).ok().and_then(|at| self.flips.serials.get_mut(at));
        let serial = serial.filter(|serial| **serial != 0).ok_or(Status::BAD_PAGE)?;
        entry.commit(self.me)?;
        *serial = 0;
        entry.complete(frame as u32);
        Ok(())
    }
}

impl PeerSlot {
    /// Takes over at most `pages` pages that the owner gave up; `None` if it has no live arena.
    pub(super) fn populate(self: &Arc<Self>, pages: usize, into: &mut Vec<OwnedPage>) -> Option<()> {
        let mut arenas = self.lock();
        let peer_arena = arenas.live()?;
        peer_arena.fill_pool(pages);
        for _ in 0..pages {
            let Some(frame) = peer_arena.flips.pool.pop() else { break };
            let token =
                u64::from(peer_arena.generation) << 32 | u64::from(peer_arena.flips.renew_serial(frame));
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
            if peer_arena.flips.serials.get(frame as usize) == Some(&(token as u32)) {
                peer_arena.flips.pool.push(frame);
            }
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

#[cfg(test)]
mod tests {
    use super::super::arena::Arena;
    use super::super::layout::Layout;
    use super::*;
    use proptest::prelude::*;
    use ring_abi::DomId;
    use std::collections::HashSet;

    const BACK: DomId = DomId(0);

    /// The peer's view of an arena whose owner queued these frames, valid or not.
    fn peer_arena_with_queue(frames: &[u32]) -> PeerArena {
        let arena = Arena::create(Layout::new(64).unwrap()).unwrap();
        balloon::push(&arena, &mut 0, frames);
        PeerArena::new(arena, BACK).unwrap()
    }

    proptest! {
        #[test]
        fn fill_pool_takes_each_grantable_queued_frame_once(frames in proptest::collection::vec(0u32..80, 0..64)) {
            let mut peer_arena = peer_arena_with_queue(&frames);
            peer_arena.fill_pool(1_000);
            let layout = peer_arena.arena.layout();
            let expected: HashSet<_> = frames.into_iter().filter(|frame| layout.grantable(*frame)).collect();
            prop_assert_eq!(peer_arena.flips.pool.len(), expected.len());
            prop_assert_eq!(peer_arena.flips.pool.iter().copied().collect::<HashSet<_>>(), expected);
        }

        #[test]
        fn fill_pool_with_any_queue_indexes_is_bounded(produced: u32, consumed: u32) {
            use std::sync::atomic::Ordering;
            let mut peer_arena = peer_arena_with_queue(&[]);
            let header = peer_arena.arena.layout().balloon();
            peer_arena.arena.word(header).store(produced, Ordering::Relaxed);
            peer_arena.arena.word(header + 64).store(consumed, Ordering::Relaxed);
            peer_arena.fill_pool(1_000);
            prop_assert!(peer_arena.flips.pool.len() <= 64);
        }
    }

    #[test]
    fn transfer_of_a_frame_that_is_not_owned_is_refused() {
        let first = Layout::new(64).unwrap().first();
        let mut peer_arena = peer_arena_with_queue(&[first]);
        let gref = GrantRef(9);
        peer_arena.arena.entry(gref).unwrap().accept(BACK);
        assert_eq!(peer_arena.transfer(first.into(), gref), Err(Status::BAD_PAGE));
        peer_arena.fill_pool(1);
        assert_eq!(peer_arena.transfer(u64::from(first) + 1, gref), Err(Status::BAD_PAGE));
        assert_eq!(peer_arena.transfer(u64::from(first) + (1 << 32), gref), Err(Status::BAD_PAGE));
        assert_eq!(peer_arena.transfer(u64::MAX, gref), Err(Status::BAD_PAGE));
        assert_eq!(peer_arena.transfer(first.into(), GrantRef(u32::MAX)), Err(Status::BAD_GNTREF));
        assert_eq!(peer_arena.transfer(first.into(), gref), Ok(()));
        assert_eq!(peer_arena.transfer(first.into(), gref), Err(Status::BAD_PAGE));
    }
}
