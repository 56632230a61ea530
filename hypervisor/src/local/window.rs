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
use std::os::fd::OwnedFd;
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

/// Where pages are in an arena's memfd.
pub(super) struct Source {
    memfd: OwnedFd,
    offsets: Vec<i64>,
}

impl Source {
    /// The pages of an arena at these addresses.
    ///
    /// # Errors
    /// [`Error::NoSpace`] for an address outside of the arena; [`Error::Io`] without a descriptor.
    pub(super) fn new(arena: &Arena, bases: &[NonNull<u8>]) -> Result<Self> {
        let offsets: Option<Vec<i64>> = bases.iter().map(|base| arena.offset_of(*base)).collect();
        let offsets = offsets.ok_or(Error::NoSpace("pages of this arena"))?;
        let memfd = arena.fd().try_clone_to_owned().map_err(|e| Error::io("duplicate an arena", e))?;
        Ok(Self { memfd, offsets })
    }
}

impl Window {
    /// Maps the pages of `source`, in this order, which are those pinned by `pins`. These are dropped, and unpinned, where it
    /// fails: the caller has no lock that this takes.
    ///
    /// # Errors
    /// [`Error::Io`] if `mmap` fails; [`Error::NoSpace`] for no pages.
    pub(super) fn map_all(source: &Source, pins: Mapping) -> Result<Mapping> {
        let bytes = source.offsets.len() * PAGE_SIZE;
        let bytes = NonZeroUsize::new(bytes).ok_or(Error::NoSpace("a window of no pages"))?;
        // SAFETY: a new range at an address that the kernel chooses.
        let base = unsafe { mmap_anonymous(None, bytes, ProtFlags::PROT_NONE, MapFlags::MAP_PRIVATE) }
            .map_err(|e| Error::io("reserve a window", e))?;
        let access = pins.access();
        let window = Self { base, len: bytes, _pins: pins };
        let mut pages = smallvec::SmallVec::new();
        for n in 0..source.offsets.len() {
            pages.push(Page { base: window.map_page(source, n)?, token: 0 });
        }
        // SAFETY: each page was just mapped over the reserved range, which lives as long as its owner, `window`.
        Ok(unsafe { Mapping::new(pages, access, Arc::new(window)) })
    }

    /// Maps page `n` of the source as page `n` of the range.
    fn map_page(&self, source: &Source, n: usize) -> Result<NonNull<u8>> {
        let at = self.base.as_ptr() as usize + n * PAGE_SIZE;
        let at = NonZeroUsize::new(at);
        let one = NonZeroUsize::new(PAGE_SIZE).expect("not zero");
        let prot = ProtFlags::PROT_READ | ProtFlags::PROT_WRITE;
        let flags = MapFlags::MAP_SHARED | MapFlags::MAP_FIXED;
        // SAFETY: replaces one page of the reserved range, to which no pointer was given out yet.
        let mapped = unsafe { mmap(at, one, prot, flags, &source.memfd, source.offsets[n]) };
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
