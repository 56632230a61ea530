//! Scattered pages of an arena at consecutive addresses: a second view of the memfd, page by page.
#![allow(unsafe_code)] // Maps over a reserved range of addresses.

use super::arena::Arena;
use crate::map::{Page, Unmap};
use crate::{Access, Error, Mapping, Result};
use nix::sys::mman::{MapFlags, ProtFlags, mmap, mmap_anonymous, munmap};
use ring_abi::PAGE_SIZE;
use std::ffi::c_void;
use std::num::NonZeroUsize;
use std::ptr::NonNull;
use std::sync::Arc;

/// The range of addresses, and the pins of the pages shown there.
pub(super) struct Window {
    base: NonNull<c_void>,
    len: NonZeroUsize,
    _pins: Mapping,
}

// SAFETY: the range is valid in every thread until it is unmapped, which happens once, on drop.
unsafe impl Send for Window {}
// SAFETY: as above; nothing is mutated through `&Window`.
unsafe impl Sync for Window {}

impl Window {
    /// Shows the pages pinned by `pins`, whose addresses in the arena are `bases`, one after the other.
    ///
    /// # Errors
    /// The system's.
    pub(super) fn show_all(arena: &Arena, pins: Mapping, bases: &[NonNull<u8>]) -> Result<Mapping> {
        let bytes =
            NonZeroUsize::new(bases.len() * PAGE_SIZE).ok_or(Error::NoSpace("a window of no pages"))?;
        // SAFETY: a fresh range, wherever the kernel likes.
        let base = unsafe { mmap_anonymous(None, bytes, ProtFlags::PROT_NONE, MapFlags::MAP_PRIVATE) }
            .map_err(|e| Error::io("reserve a window", e))?;
        let access = pins.access();
        let window = Self { base, len: bytes, _pins: pins };
        let mut pages = smallvec::SmallVec::new();
        for (n, page) in bases.iter().enumerate() {
            pages.push(Page { base: window.show(arena, n, *page)?, token: 0 });
        }
        // SAFETY: each page was just mapped over the reserved range, which lives as long as its owner, `window`.
        Ok(unsafe { Mapping::new(pages, access, Arc::new(window)) })
    }

    /// Maps one page of the arena over place `n` of the range.
    fn show(&self, arena: &Arena, n: usize, page: NonNull<u8>) -> Result<NonNull<u8>> {
        let at = self.base.as_ptr() as usize + n * PAGE_SIZE;
        let (at, one) = (NonZeroUsize::new(at), NonZeroUsize::new(PAGE_SIZE).expect("pages have bytes"));
        let prot = ProtFlags::PROT_READ | ProtFlags::PROT_WRITE;
        let flags = MapFlags::MAP_SHARED | MapFlags::MAP_FIXED;
        let offset = arena.offset_of(page).ok_or(Error::NoSpace("pages of this arena"))?;
        // SAFETY: replaces one page of our own reserved range, to which nobody has a pointer yet.
        let shown = unsafe { mmap(at, one, prot, flags, arena.fd(), offset) };
        shown.map(NonNull::cast).map_err(|e| Error::io("map a page into a window", e))
    }
}

impl Unmap for Window {
    fn unmap(&self, _pages: &[Page], _access: Access) {
        // Its drop does it, right after: the mapping was its only holder.
    }
}

impl Drop for Window {
    fn drop(&mut self) {
        // SAFETY: our own range; the mapping that lent pointers into it is gone.
        if let Err(error) = unsafe { munmap(self.base, self.len.get()) } {
            tracing::error!(%error, "a window stays mapped");
        }
    }
}
