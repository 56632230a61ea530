//! Pages of this domain that a peer may map, and their grant references.
#![allow(unsafe_code)] // Pointers to memory that another domain writes.

use crate::{Access, Result, SharedSlice};
use alloc::boxed::Box;
use core::fmt;
use core::ptr::NonNull;
use ring_abi::{GrantRef, PAGE_SIZE, shm::Memory};

/// Ends the grants of a [`Shared`], as Linux's `gnttab_end_foreign_access`.
pub trait EndAccess: Send + Sync {
    /// Ends the grants and frees the pages. Pages that the peer still has mapped are quarantined: they are not
    /// allocated again before the peer has unmapped them (XSA-396).
    ///
    /// # Errors
    /// [`Error::Grant`](crate::Error::Grant) with the first reference still in use; all other pages are freed or quarantined all the same.
    fn end_access(&mut self) -> Result<()>;

    /// Whether the peer can still map the pages. Where it is a process it cannot once that has ended: its successor maps pages
    /// that are granted later.
    fn is_live(&self) -> bool {
        true
    }
}

/// Pages at consecutive addresses, granted to a peer until this value is dropped.
pub struct Shared {
    base: NonNull<u8>,
    refs: Box<[GrantRef]>,
    access: Access,
    grants: Option<Box<dyn EndAccess>>,
}

// SAFETY: the pages stay mapped, at addresses valid in every thread, until drop.
unsafe impl Send for Shared {}
// SAFETY: as above; nothing is mutated through `&Shared` but by volatile access.
unsafe impl Sync for Shared {}

impl Shared {
    /// # Safety
    /// `base` points at `refs.len()` consecutive, page-aligned, readable and writable pages, zeroed, that stay
    /// mapped until `grants.end_access()` was called and `grants` dropped, and are granted by `refs` in this order.
    pub unsafe fn new(
        base: NonNull<u8>,
        refs: Box<[GrantRef]>,
        access: Access,
        grants: Box<dyn EndAccess>,
    ) -> Self {
        assert!(!refs.is_empty(), "no pages are shared");
        Self { base, refs, access, grants: Some(grants) }
    }

    /// The grant references, one a page.
    pub fn refs(&self) -> &[GrantRef] {
        &self.refs
    }

    /// Whether the peer can still map the pages, as [`EndAccess::is_live`].
    pub fn is_live(&self) -> bool {
        self.grants.as_ref().is_some_and(|grants| grants.is_live())
    }

    /// Number of pages.
    pub fn pages(&self) -> usize {
        self.refs.len()
    }

    /// What the peer is granted.
    pub fn access(&self) -> Access {
        self.access
    }

    /// Returns `len` bytes of the region from `offset` on, across pages; `None` if they are not inside.
    #[inline]
    pub fn slice(&self, offset: usize, len: usize) -> Option<SharedSlice<'_>> {
        // SAFETY: the region stays mapped while `self` is borrowed.
        let region = unsafe { SharedSlice::new(self.base.as_ptr(), self.refs.len() * PAGE_SIZE) };
        region.subslice(offset, len)
    }

    /// Ends the grants now and reports whether the peer still has a page mapped; [`Drop`] does the same and logs it.
    ///
    /// # Errors
    /// As [`EndAccess::end_access`].
    pub fn end(mut self) -> Result<()> {
        self.grants.take().map_or(Ok(()), |mut grants| grants.end_access())
    }
}

impl Drop for Shared {
    fn drop(&mut self) {
        if let Some(Err(error)) = self.grants.take().map(|mut grants| grants.end_access()) {
            tracing::warn!(%error, "failed to end a grant: the peer still has the page mapped; quarantined");
        }
    }
}

impl fmt::Debug for Shared {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
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
