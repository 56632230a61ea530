//! Mapped pages of a peer, unmapped on drop.
#![allow(unsafe_code)] // Pointers into another domain's memory.

use crate::{Access, SharedSlice};
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::fmt;
use core::ptr::NonNull;
use ring_abi::{GrantRef, PAGE_SIZE, shm::Memory};
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
    /// Kept when the pages are unmapped: a mapping that is filled again by the same owner changes no count of its users.
    owner: Option<Arc<dyn Unmap>>,
}

// SAFETY: the pages stay mapped, at addresses valid in every thread, until drop; access goes through
// `SharedSlice` or raw pointers only.
unsafe impl Send for Mapping {}
// SAFETY: as above; nothing is mutated through `&Mapping`.
unsafe impl Sync for Mapping {}

/// Mappings by number, to be filled by [`GrantTable::map_batch`](crate::GrantTable::map_batch) where they are: moving one
/// costs more than filling it.
pub trait Mappings {
    /// The mapping of this number. Called with locks of the hypervisor held.
    fn mapping(&mut self, number: u32) -> &mut Mapping;
}

impl Mappings for Vec<Mapping> {
    fn mapping(&mut self, number: u32) -> &mut Mapping {
        &mut self[number as usize]
    }
}

/// One page of a batch: which mapping gets it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct MapOp {
    /// The page.
    pub gref: GrantRef,
    /// The number of the mapping in [`Mappings`].
    pub mapping: u32,
    /// How it is mapped, which is the same for all pages of a mapping.
    pub access: Access,
}

impl Mapping {
    /// # Safety
    /// Every page is `PAGE_SIZE` readable (and, for [`Access::ReadWrite`], writable) bytes that stay mapped until
    /// `owner.unmap` is called with them, which happens once, when the mapping is dropped.
    pub unsafe fn new(pages: SmallVec<[Page; INLINE_PAGES]>, access: Access, owner: Arc<dyn Unmap>) -> Self {
        Self { pages, access, owner: Some(owner) }
    }

    /// A mapping of no pages, to be filled by [`GrantTable::map_batch`](crate::GrantTable::map_batch).
    pub fn empty() -> Self {
        Self { pages: SmallVec::new(), access: Access::ReadOnly, owner: None }
    }

    /// Unmaps the pages; the mapping can be filled again.
    pub fn unmap(&mut self) {
        if let (Some(owner), false) = (&self.owner, self.pages.is_empty()) {
            owner.unmap(&self.pages, self.access);
        }
        self.pages.clear();
    }

    /// Appends a page that `owner` mapped.
    ///
    /// # Safety
    /// As [`Mapping::new`]. The pages that are in the mapping already, if there are any, have the same owner and access.
    #[inline]
    pub unsafe fn push(&mut self, page: Page, access: Access, owner: &Arc<dyn Unmap>) {
        if self.pages.is_empty() {
            self.access = access;
            if !self.is_owned_by(Arc::as_ptr(owner).cast()) {
                self.owner = Some(owner.clone());
            }
        }
        self.pages.push(page);
    }

    /// For the owner at this address: takes the pages out of the mapping without unmapping them, which is then left to
    /// `unmap`. Returns `false`, and does nothing, if another has mapped them.
    #[inline]
    pub fn release_to(&mut self, owner: *const (), mut unmap: impl FnMut(Page, Access)) -> bool {
        if !self.pages.is_empty() && !self.is_owned_by(owner) {
            return false;
        }
        let access = self.access;
        self.pages.drain(..).for_each(|page| unmap(page, access));
        true
    }

    fn is_owned_by(&self, owner: *const ()) -> bool {
        self.owner.as_ref().is_some_and(|mine| Arc::as_ptr(mine).cast::<()>() == owner)
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
        self.unmap();
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
