//! Page flipping: pages that change their owner instead of being copied.
//!
//! A frontend gives up pages ([`Hypervisor::balloon_out`]) and lets entries accept others in their stead
//! ([`Hypervisor::accept_transfer`]). The backend claims what was given up ([`Hypervisor::populate`]), fills a page
//! and gives it to an entry that accepts ([`Hypervisor::transfer`]): as XENMEM_decrease_reservation,
//! GTF_accept_transfer, XENMEM_increase_reservation and GNTTABOP_transfer.
//!
//! [`Hypervisor::balloon_out`]: crate::Hypervisor::balloon_out
//! [`Hypervisor::accept_transfer`]: crate::Hypervisor::accept_transfer
//! [`Hypervisor::populate`]: crate::Hypervisor::populate
//! [`Hypervisor::transfer`]: crate::Hypervisor::transfer
#![allow(unsafe_code)] // Pointers to memory that another domain writes.

use crate::Result;
use ring_abi::{GrantRef, PAGE_SIZE};
use std::ptr::NonNull;
use std::sync::Arc;
use vm_memory::VolatileSlice;

/// Who takes an owned page back.
pub trait PageOwner: Send + Sync {
    /// This page is not used any more; does nothing if it was transferred since it got this `token`.
    fn put(&self, frame: u32, token: u64);
}

/// A page that this domain owns and nobody was granted, until it is dropped or transferred. The other domain, which
/// owned it before, may misbehave and still write to it.
pub struct OwnedPage {
    base: NonNull<u8>,
    frame: u32,
    token: u64,
    owner: Arc<dyn PageOwner>,
}

// SAFETY: the page stays mapped, at an address valid in every thread, while the owner lives.
unsafe impl Send for OwnedPage {}
// SAFETY: as above; access goes through `VolatileSlice` or raw pointers only.
unsafe impl Sync for OwnedPage {}

impl OwnedPage {
    /// # Safety
    /// `base` points at a readable and writable page that stays mapped while `owner` lives.
    pub unsafe fn new(base: NonNull<u8>, frame: u32, token: u64, owner: Arc<dyn PageOwner>) -> Self {
        Self { base, frame, token, owner }
    }

    /// Its number, for [`TransferOp::frame`](crate::TransferOp::frame).
    pub fn frame(&self) -> u64 {
        u64::from(self.frame)
    }

    /// Its address; valid while the value lives.
    #[inline]
    pub fn base(&self) -> NonNull<u8> {
        self.base
    }

    /// Bytes of it; `None` if they are not inside.
    #[inline]
    pub fn slice(&self, offset: usize, len: usize) -> Option<VolatileSlice<'_>> {
        if offset.checked_add(len)? > PAGE_SIZE {
            return None;
        }
        // SAFETY: inside a page that stays mapped while `self` is borrowed.
        Some(unsafe { VolatileSlice::new(self.base.as_ptr().add(offset), len) })
    }
}

impl Drop for OwnedPage {
    fn drop(&mut self) {
        self.owner.put(self.frame, self.token);
    }
}

impl std::fmt::Debug for OwnedPage {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "OwnedPage(frame {})", self.frame)
    }
}

/// Entries that accept pages from a peer; dropping it stops that.
pub trait AcceptTransfer: Send {
    /// The references, to be told to the peer.
    fn refs(&self) -> &[GrantRef];
    /// The page that entry `index` accepted, if one came; the entry accepts no further one until it is armed.
    ///
    /// # Errors
    /// [`Error::Protocol`](crate::Error::Protocol) where the peer named a page that this domain never gave up.
    ///
    /// # Panics
    /// If there is no such entry.
    fn take(&mut self, index: usize) -> Result<Option<OwnedPage>>;
    /// Lets entry `index` accept again; nothing changes if it still does.
    ///
    /// # Panics
    /// If there is no such entry.
    fn arm(&mut self, index: usize);
}
