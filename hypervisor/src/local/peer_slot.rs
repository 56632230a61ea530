//! The arenas of one peer: the current one, and retired ones of which pages are still in use.
//!
//! There is one lock a peer. It is held while a batch's pages are pinned, and never while bytes are copied or a
//! thread waits. It is a spin lock, as its holder does a few nanoseconds of work a page.
#![allow(unsafe_code)] // Creates values whose contract is that their memory stays mapped.

use super::membership::Membership;
use super::peer_arena::PeerArena;
use super::window::{Source, Window};
use crate::{Error, Result};
use grant_table::map::{INLINE_PAGES, Page, Unmap};
use grant_table::{Access, Contiguous, MapOp, Mapping, Mappings};
use ring_abi::{DomId, GrantRef, PAGE_SIZE};
use smallvec::SmallVec;
use spin::mutex::{SpinMutex, SpinMutexGuard};
use spin::relax::Yield;
use std::ptr::NonNull;
use std::sync::Arc;

/// Pinned pages that are to become a [`Mapping`].
pub(super) type Pages = SmallVec<[Page; INLINE_PAGES]>;

/// A peer of this domain, with or without an arena.
pub(super) struct PeerSlot {
    pub(super) owner: DomId,
    arenas: SpinMutex<Arenas, Yield>,
    /// Keeps this domain a member while anything is mapped.
    _membership: Arc<Membership>,
}

/// The arenas of one peer.
#[derive(Default)]
pub(super) struct Arenas {
    /// The arena in use; it may be retired at any time.
    current: Option<PeerArena>,
    /// Retired arenas of which pages are in use.
    retired: Vec<PeerArena>,
    last_generation: u32,
}

impl Arenas {
    /// The arena to map from, unless it is retired.
    #[inline]
    pub(super) fn live(&mut self) -> Option<&mut PeerArena> {
        self.current.as_mut().filter(|peer_arena| !peer_arena.arena.is_retired())
    }

    /// The arena of this generation, of which pages are in use.
    #[inline]
    pub(super) fn find(&mut self, generation: u32) -> Option<&mut PeerArena> {
        match &mut self.current {
            Some(peer_arena) if peer_arena.generation == generation => Some(peer_arena),
            _ => self.retired.iter_mut().find(|peer_arena| peer_arena.generation == generation),
        }
    }

    /// Undoes one pin.
    #[inline]
    fn unpin(&mut self, page: Page, access: Access) {
        if let Some(peer_arena) = self.find((page.token >> 32) as u32) {
            peer_arena.unpin(gref(page), access == Access::ReadWrite);
        }
    }

    /// Unmaps retired arenas without pages in use, which frees an exited peer's memory.
    #[inline]
    pub(super) fn unmap_retired(&mut self) {
        if !self.retired.is_empty() {
            self.retired.retain(|peer_arena| peer_arena.in_use > 0);
        }
        if self
            .current
            .as_ref()
            .is_some_and(|peer_arena| peer_arena.in_use == 0 && peer_arena.arena.is_retired())
        {
            self.current = None;
        }
    }
}

impl PeerSlot {
    pub(super) fn new(owner: DomId, membership: Arc<Membership>) -> Self {
        Self { owner, arenas: SpinMutex::new(Arenas::default()), _membership: membership }
    }

    #[inline]
    pub(super) fn lock(&self) -> SpinMutexGuard<'_, Arenas, Yield> {
        self.arenas.lock()
    }

    /// Whether any arena is mapped.
    #[cfg(test)]
    pub(super) fn is_mapped(&self) -> bool {
        let arenas = self.lock();
        arenas.current.is_some() || !arenas.retired.is_empty()
    }

    /// Whether there is an arena to map from.
    pub(super) fn is_live(&self) -> bool {
        self.lock().live().is_some()
    }

    /// Retires the arena in use, as its owner is gone and no broker knows of it.
    pub(super) fn retire(&self) {
        let mut arenas = self.lock();
        if let Some(peer_arena) = &arenas.current {
            peer_arena.arena.mark_retired();
        }
        arenas.unmap_retired();
    }

    /// Makes `arena` the current one.
    ///
    /// # Errors
    /// [`Error::Io`] if there is no memory for its pin counts.
    pub(super) fn put(&self, arena: super::arena::Arena, me: DomId) -> Result<()> {
        let mut peer_arena = PeerArena::new(arena, me)?;
        let mut arenas = self.lock();
        arenas.last_generation = arenas.last_generation.wrapping_add(1);
        peer_arena.generation = arenas.last_generation;
        let before = arenas.current.replace(peer_arena);
        arenas.retired.extend(before);
        arenas.unmap_retired();
        Ok(())
    }

    /// Pins the pages of `refs`, all or none, and appends them to `pages`, which is empty. Returns `None` without a
    /// live arena. (The caller turns `pages` into a mapping, which is too large to be moved through this function.)
    ///
    /// # Errors
    /// [`Error::Grant`] for the first reference that was refused.
    #[inline]
    pub(super) fn pin(&self, refs: &[GrantRef], access: Access, pages: &mut Pages) -> Option<Result<()>> {
        let mut arenas = self.lock();
        let peer_arena = arenas.live()?;
        let write = access == Access::ReadWrite;
        for gref in refs {
            match peer_arena.pin(*gref, write) {
                Ok(base) => pages.push(Page { base, token: token(peer_arena.generation, *gref) }),
                Err(status) => {
                    refs[..pages.len()].iter().for_each(|gref| peer_arena.unpin(*gref, write));
                    return Some(Err(Error::Grant { peer: self.owner, gref: *gref, status }));
                }
            }
        }
        Some(Ok(()))
    }

    /// Pins the pages of several mappings under one lock. Returns `None` without a live arena.
    ///
    /// # Errors
    /// [`Error::Grant`] for the first reference that was refused.
    pub(super) fn pin_batch(
        self: &Arc<Self>,
        ops: &[MapOp],
        mappings: &mut dyn Mappings,
    ) -> Option<Result<()>> {
        let owner: Arc<dyn Unmap> = self.clone();
        let mut arenas = self.lock();
        let peer_arena = arenas.live()?;
        let mut outcome = Ok(());
        for of_one in ops.chunk_by(|a, b| a.mapping == b.mapping) {
            let mapping = mappings.mapping(of_one[0].mapping);
            debug_assert_eq!(mapping.pages(), 0, "mapping {} is in use", of_one[0].mapping);
            for op in of_one {
                match peer_arena.pin(op.gref, op.access == Access::ReadWrite) {
                    Ok(base) => {
                        let page = Page { base, token: token(peer_arena.generation, op.gref) };
                        // SAFETY: as in `mapping`.
                        unsafe { mapping.push(page, op.access, &owner) }
                    }
                    Err(status) => {
                        let refused = Error::Grant { peer: self.owner, gref: op.gref, status };
                        outcome = outcome.and(Err(refused));
                        mapping.release_to(self.address(), |page, access| {
                            peer_arena.unpin(gref(page), access == Access::ReadWrite)
                        });
                        break;
                    }
                }
            }
        }
        Some(outcome)
    }

    /// Unpins the pages of several mappings under one lock.
    pub(super) fn unpin_batch(self: &Arc<Self>, numbers: &[u32], mappings: &mut dyn Mappings) {
        let mut arenas = self.lock();
        let mut others = false;
        for number in numbers {
            others |= !mappings
                .mapping(*number)
                .release_to(self.address(), |page, access| arenas.unpin(page, access));
        }
        arenas.unmap_retired();
        drop(arenas);
        if others {
            numbers.iter().for_each(|number| mappings.mapping(*number).unmap());
        }
    }

    /// What mappings know their owner by.
    fn address(self: &Arc<Self>) -> *const () {
        Arc::as_ptr(self).cast()
    }

    /// Makes a mapping of pinned pages, which unpins them on drop.
    #[inline]
    pub(super) fn mapping(self: &Arc<Self>, pages: Pages, access: Access) -> Mapping {
        // SAFETY: pages of an arena that `self` keeps mapped while pages of it are in use; pinned until `unmap`.
        unsafe { Mapping::new(pages, access, self.clone()) }
    }

    /// Makes the addresses of a mapping's pages consecutive: they may be already; else they are mapped again in a
    /// window.
    ///
    /// # Errors
    /// [`Error::NoSpace`] for a mapping of no pages; [`Error::Io`] if the window cannot be mapped.
    pub(super) fn make_contiguous(&self, pins: Mapping) -> Result<Contiguous> {
        let bases: Vec<_> = (0..pins.pages()).map(|n| pins.base(n)).collect();
        let follows = |w: &[NonNull<u8>]| w[0].as_ptr().wrapping_add(PAGE_SIZE) == w[1].as_ptr();
        let pages = if bases.windows(2).all(follows) { pins } else { self.window(pins, &bases)? };
        Contiguous::new(pages).ok_or(Error::NoSpace("a mapping of no pages"))
    }

    fn window(&self, pins: Mapping, bases: &[NonNull<u8>]) -> Result<Mapping> {
        let source = {
            let arenas = self.lock();
            let holds = |peer_arena: &&PeerArena| {
                bases.iter().all(|base| peer_arena.arena.offset_of(*base).is_some())
            };
            let peer_arena = arenas.current.iter().chain(&arenas.retired).find(holds);
            let peer_arena =
                peer_arena.ok_or_else(|| Error::Protocol("a mapping with pages of two arenas".into()));
            peer_arena.and_then(|peer_arena| Source::new(&peer_arena.arena, bases))
        };
        // Without the lock: where it fails the pins are dropped, which takes it.
        Window::map_all(&source?, pins)
    }
}

/// The reference of a pinned page.
#[inline]
fn gref(page: Page) -> GrantRef {
    GrantRef(page.token as u32)
}

#[inline]
fn token(generation: u32, gref: GrantRef) -> u64 {
    u64::from(generation) << 32 | u64::from(gref.0)
}

impl Unmap for PeerSlot {
    #[inline]
    fn unmap(&self, pages: &[Page], access: Access) {
        let mut arenas = self.lock();
        pages.iter().for_each(|page| arenas.unpin(*page, access));
        arenas.unmap_retired();
    }
}

#[cfg(test)]
mod tests {
    use super::super::arena::{self, Arena};
    use super::super::layout::Layout;
    use super::*;

    #[test]
    fn retired_arena_is_unmapped_after_its_last_page_is_unpinned() {
        const ME: DomId = DomId(2);
        let layout = Layout::new(64).unwrap();
        let arena = Arena::create(layout).unwrap();
        arena.entry(GrantRef(8)).unwrap().permit(ME, layout.first(), false);
        let fd = arena.fd().try_clone_to_owned().unwrap();
        let mut arenas = Arenas { current: Some(PeerArena::new(arena, ME).unwrap()), ..Arenas::default() };
        arenas.live().unwrap().pin(GrantRef(8), true).unwrap();
        arenas.unmap_retired();
        arena::retire(&fd, layout).unwrap();
        arenas.unmap_retired();
        assert!(arenas.live().is_none());
        arenas.find(0).expect("kept for the pin").unpin(GrantRef(8), true);
        arenas.unmap_retired();
        assert!(arenas.current.is_none());
    }
}
