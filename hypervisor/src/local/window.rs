//! A window: scattered pages of an arena, mapped a second time at consecutive addresses.
#![allow(unsafe_code)] // Maps over a reserved range of addresses.

use super::arena::Arena;
use crate::{Error, Result};
use grant_table::map::{Page, Unmap};
use grant_table::{Access, Mapping};
use nix::sys::mman::{MapFlags, ProtFlags, mmap, mmap_anonymous, munmap};
use ring_abi::PAGE_SIZE;
use std::ffi::c_void;
use std::num::NonZeroUsize;
use std::ptr::NonNull;
use std::sync::Arc;

/// The range of addresses, and the pins of the pages mapped there.
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
    /// Maps the pages pinned by `pins`, whose addresses in the arena are `bases`, in this order.
    ///
    /// # Errors
    /// [`Error::Io`] if `mmap` fails; [`Error::NoSpace`] for no pages, or an address outside of the arena.
    pub(super) fn map_all(arena: &Arena, pins: Mapping, bases: &[NonNull<u8>]) -> Result<Mapping> {
        let bytes =
            NonZeroUsize::new(bases.len() * PAGE_SIZE).ok_or(Error::NoSpace("a window of no pages"))?;
        // SAFETY: a new range at an address that the kernel chooses.
        let base = unsafe { mmap_anonymous(None, bytes, ProtFlags::PROT_NONE, MapFlags::MAP_PRIVATE) }
            .map_err(|e| Error::io("reserve a window", e))?;
        let access = pins.access();
        let window = Self { base, len: bytes, _pins: pins };
        let mut pages = smallvec::SmallVec::new();
        for (n, page) in bases.iter().enumerate() {
            pages.push(Page { base: window.map_page(arena, n, *page)?, token: 0 });
        }
        // SAFETY: each page was just mapped over the reserved range, which lives as long as its owner, `window`.
        Ok(unsafe { Mapping::new(pages, access, Arc::new(window)) })
    }

    /// Maps one page of the arena as page `n` of the range.
    fn map_page(&self, arena: &Arena, n: usize, page: NonNull<u8>) -> Result<NonNull<u8>> {
        let at = self.base.as_ptr() as usize + n * PAGE_SIZE;
        let at = NonZeroUsize::new(at);
        let one = NonZeroUsize::new(PAGE_SIZE).expect("not zero");
        let prot = ProtFlags::PROT_READ | ProtFlags::PROT_WRITE;
        let flags = MapFlags::MAP_SHARED | MapFlags::MAP_FIXED;
        let offset = arena.offset_of(page).ok_or(Error::NoSpace("pages of this arena"))?;
        // SAFETY: replaces one page of the reserved range, to which no pointer was given out yet.
        let mapped = unsafe { mmap(at, one, prot, flags, arena.fd(), offset) };
        mapped.map(NonNull::cast).map_err(|e| Error::io("map a page into a window", e))
    }
}

impl Unmap for Window {
    fn unmap(&self, _pages: &[Page], _access: Access) {
        // The mapping held the only reference: the window is dropped right after, and unmaps the range.
    }
}

impl Drop for Window {
    fn drop(&mut self) {
        // SAFETY: the range is this window's alone; the mapping that gave out pointers into it was dropped.
        if let Err(error) = unsafe { munmap(self.base, self.len.get()) } {
            tracing::error!(%error, "failed to unmap a window");
        }
    }
}
