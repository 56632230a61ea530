//! The peer's side of an arena: mapping what its owner granted to us.
#![allow(unsafe_code)] // Makes values that promise mapped memory.

use super::arena::Arena;
use super::flip::Flips;
use super::pins::Pins;
use super::session::Session;
use super::window::Window;
use crate::map::{Page, Unmap};
use crate::{Access, Contiguous, Error, Mapping, Result};
use ring_abi::{DomId, GrantRef, PAGE_SIZE};
use smallvec::SmallVec;
use std::ptr::NonNull;
use std::sync::{Arc, Mutex};

/// Somebody else's arena for us.
pub(super) struct Remote {
    pub(super) arena: Arena,
    pub(super) owner: DomId,
    pub(super) me: DomId,
    pins: Pins,
    pub(super) flips: Mutex<Flips>,
    /// While something is mapped, this domain is alive.
    _session: Arc<Session>,
}

impl Remote {
    pub(super) fn new(arena: Arena, owner: DomId, session: Arc<Session>) -> Result<Self> {
        let pins = Pins::new(arena.layout().entries())?;
        let me = session.domid();
        Ok(Self { arena, owner, me, pins, flips: Mutex::default(), _session: session })
    }

    /// Pins one granted page.
    ///
    /// # Errors
    /// `GNTST_*`.
    #[inline]
    pub(super) fn pin(&self, gref: GrantRef, write: bool) -> std::result::Result<NonNull<u8>, i16> {
        self.pins.pin(&self.arena, self.me, gref, write)
    }

    /// Undoes one pin.
    #[inline]
    pub(super) fn unpin(&self, gref: GrantRef, write: bool) {
        self.pins.unpin(&self.arena, gref, write);
    }

    /// Maps pages, wherever they lie; all or none.
    ///
    /// # Errors
    /// [`Error::Grant`] for the first that was refused.
    #[inline]
    pub(super) fn map(self: &Arc<Self>, refs: &[GrantRef], access: Access) -> Result<Mapping> {
        let mut pages = SmallVec::new();
        for gref in refs {
            match self.pin(*gref, access == Access::ReadWrite) {
                Ok(base) => pages.push(Page { base, token: u64::from(gref.0) }),
                Err(status) => {
                    self.unmap(&pages, access);
                    return Err(Error::Grant { peer: self.owner, gref: *gref, status });
                }
            }
        }
        // SAFETY: pages of the arena, which `self` keeps mapped; pinned until `unmap`.
        Ok(unsafe { Mapping::new(pages, access, self.clone()) })
    }

    /// Maps pages at consecutive addresses: where they lie, if they happen to, or else through a window.
    ///
    /// # Errors
    /// As [`Remote::map`], and the system's.
    pub(super) fn map_contiguous(self: &Arc<Self>, refs: &[GrantRef], access: Access) -> Result<Contiguous> {
        if refs.is_empty() {
            return Err(Error::NoSpace("a mapping of no pages"));
        }
        let pins = self.map(refs, access)?;
        let bases: Vec<_> = (0..pins.pages()).map(|n| pins.base(n)).collect();
        let follows = |w: &[NonNull<u8>]| w[0].as_ptr().wrapping_add(PAGE_SIZE) == w[1].as_ptr();
        let pages =
            if bases.windows(2).all(follows) { pins } else { Window::show_all(&self.arena, pins, &bases)? };
        Contiguous::new(pages).ok_or(Error::NoSpace("consecutive addresses"))
    }
}

impl Unmap for Remote {
    fn unmap(&self, pages: &[Page], access: Access) {
        for page in pages {
            self.unpin(GrantRef(page.token as u32), access == Access::ReadWrite);
        }
    }
}
