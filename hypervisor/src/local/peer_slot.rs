//! What this domain has of one peer: the arena it is using, and older ones of which something is still mapped.
//!
//! One lock a peer, held for a batch's pins and never while anything is copied or waited for. It spins: its holder
//! does a few nanoseconds of work a page.
#![allow(unsafe_code)] // Makes values that promise mapped memory.

use super::peer_arena::PeerArena;
use super::session::Session;
use super::window::Window;
use crate::map::{INLINE_PAGES, Page, Unmap};
use crate::{Access, Contiguous, Error, Mapping, Result};
use ring_abi::{DomId, GrantRef, PAGE_SIZE};
use smallvec::SmallVec;
use spin::mutex::{SpinMutex, SpinMutexGuard};
use spin::relax::Yield;
use std::ptr::NonNull;
use std::sync::Arc;

/// Pinned pages on their way into a mapping.
pub(super) type Pages = SmallVec<[Page; INLINE_PAGES]>;

/// A peer, whether it shares anything or not.
pub(super) struct PeerSlot {
    pub(super) owner: DomId,
    arenas: SpinMutex<Arenas, Yield>,
    /// While something is mapped, this domain is alive.
    _session: Arc<Session>,
}

/// The arenas of one peer.
#[derive(Default)]
pub(super) struct Arenas {
    /// In use; may have been retired a moment ago.
    current: Option<PeerArena>,
    /// Retired ones of which something is mapped.
    old: Vec<PeerArena>,
    last: u32,
}

impl Arenas {
    /// The arena to map from, unless it is retired.
    #[inline]
    pub(super) fn live(&mut self) -> Option<&mut PeerArena> {
        self.current.as_mut().filter(|remote| !remote.arena.is_retired())
    }

    /// The arena of this generation, of which something is out.
    #[inline]
    pub(super) fn find(&mut self, generation: u32) -> Option<&mut PeerArena> {
        match &mut self.current {
            Some(remote) if remote.generation == generation => Some(remote),
            _ => self.old.iter_mut().find(|remote| remote.generation == generation),
        }
    }

    /// Unmaps retired arenas of which nothing is out any more: a dead peer's memory goes with it.
    #[inline]
    pub(super) fn tidy(&mut self) {
        if !self.old.is_empty() {
            self.old.retain(|remote| remote.out > 0);
        }
        if self.current.as_ref().is_some_and(|remote| remote.out == 0 && remote.arena.is_retired()) {
            self.current = None;
        }
    }
}

impl PeerSlot {
    pub(super) fn new(owner: DomId, session: Arc<Session>) -> Self {
        Self { owner, arenas: SpinMutex::new(Arenas::default()), _session: session }
    }

    #[inline]
    pub(super) fn lock(&self) -> SpinMutexGuard<'_, Arenas, Yield> {
        self.arenas.lock()
    }

    /// Whether there is an arena to map from.
    pub(super) fn is_live(&self) -> bool {
        self.lock().live().is_some()
    }

    /// Takes another arena into use.
    ///
    /// # Errors
    /// The system's.
    pub(super) fn put(&self, arena: super::arena::Arena, me: DomId) -> Result<()> {
        let mut remote = PeerArena::new(arena, me)?;
        let mut arenas = self.lock();
        arenas.last = arenas.last.wrapping_add(1);
        remote.generation = arenas.last;
        let before = arenas.current.replace(remote);
        arenas.old.extend(before);
        arenas.tidy();
        Ok(())
    }

    /// Pins pages, wherever they lie, onto the end of `pages`, which is empty: all or none. `None` if there is no live
    /// arena. (Mappings are large; they are made once, where they are returned.)
    ///
    /// # Errors
    /// [`Error::Grant`] for the first that was refused.
    #[inline]
    pub(super) fn pin(&self, refs: &[GrantRef], access: Access, pages: &mut Pages) -> Option<Result<()>> {
        let mut arenas = self.lock();
        let remote = arenas.live()?;
        let write = access == Access::ReadWrite;
        for gref in refs {
            match remote.pin(*gref, write) {
                Ok(base) => pages.push(Page { base, token: token(remote.generation, *gref) }),
                Err(status) => {
                    refs[..pages.len()].iter().for_each(|gref| remote.unpin(*gref, write));
                    return Some(Err(Error::Grant { peer: self.owner, gref: *gref, status }));
                }
            }
        }
        Some(Ok(()))
    }

    /// Makes pinned pages a mapping, which will unpin them.
    #[inline]
    pub(super) fn mapping(self: &Arc<Self>, pages: Pages, access: Access) -> Mapping {
        // SAFETY: pages of an arena that `self` keeps mapped while pins of it are out; pinned until `unmap`.
        unsafe { Mapping::new(pages, access, self.clone()) }
    }

    /// The pages of a mapping at consecutive addresses: where they lie, if they happen to, or else through a window.
    ///
    /// # Errors
    /// The system's.
    pub(super) fn line_up(&self, pins: Mapping) -> Result<Contiguous> {
        let bases: Vec<_> = (0..pins.pages()).map(|n| pins.base(n)).collect();
        let follows = |w: &[NonNull<u8>]| w[0].as_ptr().wrapping_add(PAGE_SIZE) == w[1].as_ptr();
        let pages = if bases.windows(2).all(follows) { pins } else { self.window(pins, &bases)? };
        Contiguous::new(pages).ok_or(Error::NoSpace("a mapping of no pages"))
    }

    fn window(&self, pins: Mapping, bases: &[NonNull<u8>]) -> Result<Mapping> {
        let arenas = self.lock();
        let holds = |remote: &&PeerArena| bases.iter().all(|base| remote.arena.offset_of(*base).is_some());
        let remote = arenas.current.iter().chain(&arenas.old).find(holds);
        let arena = &remote.ok_or_else(|| Error::Protocol("pages of two arenas".into()))?.arena;
        Window::show_all(arena, pins, bases)
    }
}

#[inline]
fn token(generation: u32, gref: GrantRef) -> u64 {
    u64::from(generation) << 32 | u64::from(gref.0)
}

impl Unmap for PeerSlot {
    #[inline]
    fn unmap(&self, pages: &[Page], access: Access) {
        let Some(first) = pages.first() else { return };
        let mut arenas = self.lock();
        // A mapping's pages are of one arena.
        if let Some(remote) = arenas.find((first.token >> 32) as u32) {
            for page in pages {
                remote.unpin(GrantRef(page.token as u32), access == Access::ReadWrite);
            }
        }
        arenas.tidy();
    }
}

#[cfg(test)]
mod tests {
    use super::super::arena::{self, Arena};
    use super::super::layout::Layout;
    use super::*;

    #[test]
    fn a_retired_arena_goes_once_nothing_of_it_is_out() {
        const ME: DomId = DomId(2);
        let layout = Layout::new(64).unwrap();
        let arena = Arena::create(layout).unwrap();
        arena.entry(GrantRef(8)).unwrap().permit(ME, layout.first(), false);
        let fd = arena.fd().try_clone_to_owned().unwrap();
        let mut arenas = Arenas { current: Some(PeerArena::new(arena, ME).unwrap()), ..Arenas::default() };
        arenas.live().unwrap().pin(GrantRef(8), true).unwrap();
        arenas.tidy();
        arena::retire(&fd, layout).unwrap();
        arenas.tidy();
        assert!(arenas.live().is_none());
        arenas.find(0).expect("kept for the pin").unpin(GrantRef(8), true);
        arenas.tidy();
        assert!(arenas.current.is_none());
    }
}
