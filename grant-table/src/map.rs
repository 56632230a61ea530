//! Mapped pages of a peer, unmapped on drop.
#![allow(unsafe_code)] // Pointers into another domain's memory.

use crate::{Access, SharedSlice};
use alloc::sync::Arc;
use core::fmt;
use core::ptr::NonNull;
use ring_abi::{PAGE_SIZE, shm::Memory};
use smallvec::SmallVec;

/// Pages that a [`Mapping`] holds without allocating: the 11 segments of a blkif request, rounded up.
pub const INLINE_PAGES: usize = 12;

/// One mapped page.
#[derive(Clone, Copy, Debug)]
pub struct Page {
    /// The address at which it is mapped.
    pub base: NonNull<u8>,
    /// What the hypervisor unmaps it by: gntdev's offset, or the arena's generation and the reference.
    pub token: u64,
}

/// Unmaps pages for a dropped [`Mapping`]; never fails and never blocks for long.
pub trait Unmap: Send + Sync {
    /// Unmaps these pages.
    fn unmap(&self, pages: &[Page], access: Access);
}

/// Pages of a peer, mapped until this value is dropped. The peer may write to them at any time.
pub struct Mapping {
    pages: SmallVec<[Page; INLINE_PAGES]>,
    access: Access,
    owner: Arc<dyn Unmap>,
}

// SAFETY: the pages stay mapped, at addresses valid in every thread, until drop; access goes through
// `SharedSlice` or raw pointers only.
unsafe impl Send for Mapping {}
// SAFETY: as above; nothing is mutated through `&Mapping`.
unsafe impl Sync for Mapping {}

impl Mapping {
    /// # Safety
    /// Every page is `PAGE_SIZE` readable (and, for [`Access::ReadWrite`], writable) bytes that stay mapped until
    /// `owner.unmap` is called with them, which happens once, when the mapping is dropped.
    pub unsafe fn new(pages: SmallVec<[Page; INLINE_PAGES]>, access: Access, owner: Arc<dyn Unmap>) -> Self {
        Self { pages, access, owner }
    }

    /// Number of pages.
    pub fn pages(&self) -> usize {
        self.pages.len()
    }

    /// How the pages are mapped.
    pub fn access(&self) -> Access {
        self.access
    }

    /// The address of a page; valid while the mapping lives.
    ///
    /// # Panics
    /// If there is no such page.
    #[inline]
    pub fn base(&self, page: usize) -> NonNull<u8> {
        self.pages[page].base
    }

    /// Returns `len` bytes of a page from `offset` on; `None` if they are not inside.
    #[inline]
    pub fn slice(&self, page: usize, offset: usize, len: usize) -> Option<SharedSlice<'_>> {
        // SAFETY: a page that stays mapped while `self` is borrowed.
        let page = unsafe { SharedSlice::new(self.pages.get(page)?.base.as_ptr(), PAGE_SIZE) };
        page.subslice(offset, len)
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        self.owner.unmap(&self.pages, self.access);
    }
}

impl fmt::Debug for Mapping {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Mapping({} pages, {:?})", self.pages.len(), self.access)
    }
}

/// A [`Mapping`] whose pages are at consecutive addresses, as a ring of several pages needs.
#[derive(Debug)]
pub struct Contiguous(Mapping);

impl Contiguous {
    /// Returns `None`, and drops the mapping, if the pages are not at consecutive addresses or there are none.
    pub fn new(mapping: Mapping) -> Option<Self> {
        let follows = |w: &[Page]| w[0].base.as_ptr().wrapping_add(PAGE_SIZE) == w[1].base.as_ptr();
        (!mapping.pages.is_empty() && mapping.pages.windows(2).all(follows)).then_some(Self(mapping))
    }
}

// SAFETY: consecutive mapped pages, page-aligned, for the life of the value.
unsafe impl Memory for Contiguous {
    fn base(&self) -> NonNull<u8> {
        self.0.pages[0].base
    }
    fn len(&self) -> usize {
        self.0.pages.len() * PAGE_SIZE
    }
}
