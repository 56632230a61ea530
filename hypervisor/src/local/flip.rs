//! Page flipping inside an arena: `GNTTABOP_transfer`, and the balloon that feeds it.
//!
//! Both sides keep lists of their own. The owner of the arena takes only frames that it gave up; the peer transfers
//! only frames that it claimed, and claims only frames that it does not have already.
#![allow(unsafe_code)] // Makes values that promise mapped memory.

use super::balloon;
use super::entry::{Accepted, BAD_PAGE, BAD_REF};
use super::own_arena::OwnArena;
use super::peer_arena::PeerArena;
use super::peer_slot::PeerSlot;
use crate::flip::{AcceptTransfer, OwnedPage, PageOwner};
use crate::{Error, Result};
use ring_abi::GrantRef;
use std::sync::Arc;

/// The peer's list: what it owns in the arena.
#[derive(Debug, Default)]
pub(super) struct Flips {
    /// For each frame that we own the serial number of its claim, else 0. Empty until the first claim.
    serials: Vec<u32>,
    /// Frames that we own and nobody uses.
    pool: Vec<u32>,
    last: u32,
}

impl Flips {
    /// A number that no value of this frame had lately, and never 0.
    fn stamp(&mut self, frame: u32) -> u32 {
        self.last = self.last.wrapping_add(1).max(1);
        self.serials[frame as usize] = self.last;
        self.last
    }
}

impl PeerArena {
    /// Takes over pages that the owner gave up until `pages` are in the pool, or there are no more.
    fn stock(&mut self, pages: usize) {
        let (layout, flips) = (self.arena.layout(), &mut self.flips);
        flips.serials.resize(layout.pages() as usize, 0);
        let missing = pages.saturating_sub(flips.pool.len());
        balloon::pop(&self.arena, missing, |frame| {
            if layout.grantable(frame) && flips.serials[frame as usize] == 0 {
                flips.stamp(frame);
                flips.pool.push(frame);
            }
        });
    }

    /// Gives a page that we own to an entry that accepts it.
    ///
    /// # Errors
    /// `GNTST_*`; the page is still ours then.
    pub(super) fn transfer(&mut self, frame: u64, gref: GrantRef) -> std::result::Result<(), i16> {
        let entry = self.arena.entry(gref).ok_or(BAD_REF)?;
        let serial = usize::try_from(frame).ok().and_then(|at| self.flips.serials.get_mut(at));
        let serial = serial.filter(|serial| **serial != 0).ok_or(BAD_PAGE)?;
        entry.commit(self.me)?;
        *serial = 0;
        entry.complete(frame as u32);
        Ok(())
    }
}

impl PeerSlot {
    /// Takes over pages that the owner gave up, if it has an arena; `None` if it has none.
    pub(super) fn populate(self: &Arc<Self>, pages: usize, into: &mut Vec<OwnedPage>) -> Option<()> {
        let mut arenas = self.lock();
        let remote = arenas.live()?;
        remote.stock(pages);
        for _ in 0..pages {
            let Some(frame) = remote.flips.pool.pop() else { break };
            let token = u64::from(remote.generation) << 32 | u64::from(remote.flips.stamp(frame));
            let base = remote.arena.page(frame).expect("only grantable frames are claimed");
            remote.out += 1;
            // SAFETY: a page of an arena that `self` keeps mapped while pages of it are out.
            into.push(unsafe { OwnedPage::new(base, frame, token, self.clone()) });
        }
        Some(())
    }
}

impl PageOwner for PeerSlot {
    fn put(&self, frame: u32, token: u64) {
        let mut arenas = self.lock();
        if let Some(remote) = arenas.find((token >> 32) as u32) {
            remote.out = remote.out.saturating_sub(1);
            if remote.flips.serials.get(frame as usize) == Some(&(token as u32)) {
                remote.flips.pool.push(frame);
            }
        }
        arenas.tidy();
    }
}

impl OwnArena {
    /// Gives up at most `pages` unused pages; how many it were.
    pub(super) fn balloon_out(&self, pages: usize) -> usize {
        let mut state = self.state();
        let state = &mut *state;
        let mut frames = [0; 64];
        let mut given = 0;
        while given < pages {
            let want = frames.len().min(pages - given);
            let there = frames[..want].iter_mut().map_while(|slot| {
                *slot = state.pages.take(1)?;
                Some(())
            });
            let there = there.count();
            let pushed = balloon::push(&self.arena, &mut state.produced, &frames[..there]);
            for (n, frame) in frames[..there].iter().enumerate() {
                if n < pushed {
                    state.touched.insert(*frame);
                    state.given.insert(*frame);
                } else {
                    state.pages.put(*frame);
                }
            }
            given += pushed;
            if pushed < want {
                break;
            }
        }
        given
    }

    /// Takes back every page that was given up and has not come back.
    pub(super) fn balloon_in(&self) -> usize {
        let mut state = self.state();
        let state = &mut *state;
        balloon::reset(&self.arena, &mut state.produced);
        let mut count = 0;
        state.given.drain(|frame| count += usize::from(state.pages.put(frame)));
        count
    }

    /// Entries that accept pages from the peer.
    ///
    /// # Errors
    /// [`Error::NoSpace`].
    pub(super) fn accept_transfer(self: &Arc<Self>, entries: usize) -> Result<Box<dyn AcceptTransfer>> {
        let mut state = self.state();
        if entries > state.refs.left() as usize {
            return Err(Error::NoSpace("grant references"));
        }
        let refs = (0..entries).map(|_| GrantRef(state.refs.take(1).expect("enough are left"))).collect();
        drop(state);
        let mut accepting = Accepting { owner: self.clone(), refs, armed: vec![false; entries].into() };
        (0..entries).for_each(|n| accepting.arm(n));
        Ok(Box::new(accepting))
    }
}

impl PageOwner for OwnArena {
    fn put(&self, frame: u32, _token: u64) {
        self.state().pages.put(frame);
    }
}

/// Our entries that accept pages.
struct Accepting {
    owner: Arc<OwnArena>,
    refs: Box<[GrantRef]>,
    armed: Box<[bool]>,
}

impl AcceptTransfer for Accepting {
    fn refs(&self) -> &[GrantRef] {
        &self.refs
    }

    fn take(&mut self, index: usize) -> Result<Option<OwnedPage>> {
        if !self.armed[index] {
            return Ok(None);
        }
        let entry = self.owner.entry(self.refs[index]);
        let Accepted::Page(frame) = entry.accepted() else { return Ok(None) };
        entry.clear();
        self.armed[index] = false;
        let ours = self.owner.state().given.remove(frame);
        let base = self.owner.arena.page(frame).filter(|_| ours).ok_or_else(|| {
            Error::Protocol(format!(
                "domain {} transferred frame {frame}, which it was not given",
                self.owner.peer
            ))
        })?;
        // SAFETY: a page of the arena, which the owner keeps mapped.
        Ok(Some(unsafe { OwnedPage::new(base, frame, 0, self.owner.clone()) }))
    }

    fn arm(&mut self, index: usize) {
        if !self.armed[index] {
            self.armed[index] = true;
            self.owner.entry(self.refs[index]).accept(self.owner.peer);
        }
    }
}

impl Drop for Accepting {
    fn drop(&mut self) {
        for n in 0..self.refs.len() {
            let entry = self.owner.entry(self.refs[n]);
            // A page that came in the last moment is taken, and given back to the allocator.
            let free = !self.armed[n] || entry.refuse() || self.take(n).is_ok_and(|page| page.is_some());
            // An entry that the peer committed and never completed is not used again.
            if free {
                self.owner.state().refs.put(self.refs[n].0);
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

    /// The backend's view of an arena into whose queue its owner writes what it likes.
    fn remote(frames: &[u32]) -> PeerArena {
        let arena = Arena::create(Layout::new(64).unwrap()).unwrap();
        balloon::push(&arena, &mut 0, frames);
        PeerArena::new(arena, BACK).unwrap()
    }

    proptest! {
        /// Whatever frames the owner claims to have given up, each page is claimed once and lies in the arena.
        #[test]
        fn made_up_frames_are_not_claimed(frames in proptest::collection::vec(0u32..80, 0..64)) {
            let mut remote = remote(&frames);
            remote.stock(1_000);
            let layout = remote.arena.layout();
            let expected: HashSet<_> = frames.into_iter().filter(|frame| layout.grantable(*frame)).collect();
            prop_assert_eq!(remote.flips.pool.len(), expected.len());
            prop_assert_eq!(remote.flips.pool.iter().copied().collect::<HashSet<_>>(), expected);
        }

        /// Whatever indexes the owner writes, a claim ends.
        #[test]
        fn made_up_indexes_are_bounded(produced: u32, consumed: u32) {
            use std::sync::atomic::Ordering;
            let mut remote = remote(&[]);
            let header = remote.arena.layout().balloon();
            remote.arena.word(header).store(produced, Ordering::Relaxed);
            remote.arena.word(header + 64).store(consumed, Ordering::Relaxed);
            remote.stock(1_000);
            prop_assert!(remote.flips.pool.len() <= 64);
        }
    }

    #[test]
    fn only_what_was_claimed_is_transferred() {
        let first = Layout::new(64).unwrap().first();
        let mut remote = remote(&[first]);
        let gref = GrantRef(9);
        remote.arena.entry(gref).unwrap().accept(BACK);
        assert_eq!(remote.transfer(first.into(), gref), Err(BAD_PAGE));
        remote.stock(1);
        assert_eq!(remote.transfer(u64::from(first) + 1, gref), Err(BAD_PAGE));
        assert_eq!(remote.transfer(u64::from(first) + (1 << 32), gref), Err(BAD_PAGE));
        assert_eq!(remote.transfer(u64::MAX, gref), Err(BAD_PAGE));
        assert_eq!(remote.transfer(first.into(), GrantRef(u32::MAX)), Err(BAD_REF));
        assert_eq!(remote.transfer(first.into(), gref), Ok(()));
        assert_eq!(remote.transfer(first.into(), gref), Err(BAD_PAGE));
    }
}
