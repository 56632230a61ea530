//! Pages of our own that a peer may map, and the references by which it does.
#![allow(unsafe_code)] // Pointers to memory that another domain writes.

use crate::{Access, Error};
use ring_abi::{GrantRef, PAGE_SIZE, shm::Memory};
use std::ptr::NonNull;
use vm_memory::VolatileSlice;

/// Who takes granted pages back.
pub trait EndAccess: Send + Sync {
    /// Ends the grants. Pages that the peer still has mapped are quarantined: never handed out again before it has
    /// let go of them (XSA-396).
    ///
    /// # Errors
    /// Names the first reference still in use; everything is given back or quarantined all the same.
    fn end(&mut self) -> Result<(), Error>;
}

/// Pages granted to a peer until this value is dropped; at consecutive addresses.
pub struct Shared {
    base: NonNull<u8>,
    refs: Box<[GrantRef]>,
    access: Access,
    access_end: Option<Box<dyn EndAccess>>,
}

// SAFETY: the pages stay mapped, at addresses valid in every thread, until drop.
unsafe impl Send for Shared {}
// SAFETY: as above; nothing is mutated through `&Shared` but by volatile access.
unsafe impl Sync for Shared {}

impl Shared {
    /// # Safety
    /// `base` points at `refs.len()` consecutive, page-aligned, readable and writable pages, zeroed, that stay
    /// mapped until `access_end.end()` was called and `access_end` dropped, and are granted by `refs` in this order.
    pub unsafe fn new(
        base: NonNull<u8>,
        refs: Box<[GrantRef]>,
        access: Access,
        access_end: Box<dyn EndAccess>,
    ) -> Self {
        Self { base, refs, access, access_end: Some(access_end) }
    }

    /// The references, one a page.
    pub fn refs(&self) -> &[GrantRef] {
        &self.refs
    }

    /// Number of pages.
    pub fn pages(&self) -> usize {
        self.refs.len()
    }

    /// What the peer may do.
    pub fn access(&self) -> Access {
        self.access
    }

    /// Address of a page; valid while the value lives.
    ///
    /// # Panics
    /// If there is no such page.
    #[inline]
    pub fn page(&self, page: usize) -> NonNull<u8> {
        assert!(page < self.refs.len(), "page {page} of {}", self.refs.len());
        // SAFETY: inside the region by the assertion.
        unsafe { self.base.add(page * PAGE_SIZE) }
    }

    /// Bytes of the region, across pages; `None` if they are not inside.
    #[inline]
    pub fn slice(&self, offset: usize, len: usize) -> Option<VolatileSlice<'_>> {
        if offset.checked_add(len)? > self.refs.len() * PAGE_SIZE {
            return None;
        }
        // SAFETY: inside the region, which stays mapped while `self` is borrowed.
        Some(unsafe { VolatileSlice::new(self.base.as_ptr().add(offset), len) })
    }

    /// Ends the grants now and says if the peer still held one; [`Drop`] does the same and logs it.
    ///
    /// # Errors
    /// As [`EndAccess::end`].
    pub fn end(mut self) -> Result<(), Error> {
        self.access_end.take().map_or(Ok(()), |mut access_end| access_end.end())
    }
}

impl Drop for Shared {
    fn drop(&mut self) {
        if let Some(Err(error)) = self.access_end.take().map(|mut access_end| access_end.end()) {
            tracing::warn!(%error, "pages quarantined: the peer still has them mapped");
        }
    }
}

impl std::fmt::Debug for Shared {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Shared({} pages from grant {:?}, {:?})", self.refs.len(), self.refs.first(), self.access)
    }
}

// SAFETY: consecutive mapped pages, page-aligned, for the life of the value.
unsafe impl Memory for Shared {
    fn base(&self) -> NonNull<u8> {
        self.base
    }
    fn len(&self) -> usize {
        self.refs.len() * PAGE_SIZE
    }
}
