//! Page flipping: pages that change their owner instead of being copied.
//!
//! A frontend gives up pages ([`Hypervisor::balloon_out`]) and prepares grant entries that accept others instead
//! ([`Hypervisor::accept_transfer`]). The backend takes over the pages given up ([`Hypervisor::populate`]), fills
//! them and transfers them to accepting entries ([`Hypervisor::transfer`]): as XENMEM_decrease_reservation,
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

/// The allocator to which a dropped [`OwnedPage`] returns.
pub trait PageOwner: Send + Sync {
    /// Returns the page `frame`; does nothing if it was transferred since it was handed out with this `token`.
    fn put(&self, frame: u32, token: u64);
}

/// A page that this domain owns and has granted to no other, until it is dropped or transferred. A misbehaving former
/// owner can still write to it.
pub struct OwnedPage {
    base: NonNull<u8>,
    frame: u32,
    token: u64,
    owner: Arc<dyn PageOwner>,
}

// SAFETY: the page stays mapped, at an address valid in every thread, while `owner` lives.
unsafe impl Send for OwnedPage {}
// SAFETY: as above; access goes through `VolatileSlice` or raw pointers only.
unsafe impl Sync for OwnedPage {}

impl OwnedPage {
    /// # Safety
    /// `base` points at a readable and writable page that stays mapped while `owner` lives.
    pub unsafe fn new(base: NonNull<u8>, frame: u32, token: u64, owner: Arc<dyn PageOwner>) -> Self {
        Self { base, frame, token, owner }
    }

    /// The frame number, for [`TransferOp::frame`](crate::TransferOp::frame).
    pub fn frame(&self) -> u64 {
        u64::from(self.frame)
    }

    /// The page's address; valid while the value lives.
    #[inline]
    pub fn base(&self) -> NonNull<u8> {
        self.base
    }

    /// Returns `len` bytes of the page from `offset` on; `None` if they are not inside.
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

/// Grant entries that accept pages from a peer (`GTF_accept_transfer`), until they are dropped.
pub trait AcceptTransfer: Send {
    /// The entries' references, which the peer needs for its [`TransferOp`](crate::TransferOp)s.
    fn refs(&self) -> &[GrantRef];
    /// Takes the page that entry `index` received, if any. The entry accepts no other page until it is armed.
    ///
    /// # Errors
    /// [`Error::Protocol`](crate::Error::Protocol) where the peer transferred a frame that this domain never gave up.
    ///
    /// # Panics
    /// If there is no such entry.
    fn take(&mut self, index: usize) -> Result<Option<OwnedPage>>;
    /// Makes entry `index` accept a page again; does nothing if it still does.
    ///
    /// # Panics
    /// If there is no such entry.
    fn arm(&mut self, index: usize);
}
