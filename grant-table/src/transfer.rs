//! Page transfer: pages that change their owner instead of being copied.
//!
//! An acceptor (a frontend) gives up pages ([`PageAcceptor::balloon_out`]) and prepares grant entries that accept others
//! instead ([`PageAcceptor::accept_transfer`]). A donor (a backend) takes over the pages given up
//! ([`PageDonor::populate`]), fills them and transfers them to accepting entries ([`PageDonor::transfer`]): as
//! XENMEM_decrease_reservation, GTF_accept_transfer, XENMEM_increase_reservation and GNTTABOP_transfer. Linux offers none
//! of this to a program on real Xen, so that only some hypervisors implement these traits.
#![allow(unsafe_code)] // Pointers to memory that another domain writes.

use crate::{Result, SharedSlice};
use alloc::boxed::Box;
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::fmt;
use core::ptr::NonNull;
use ring_abi::grant::Status;
use ring_abi::{DomId, GrantRef, PAGE_SIZE};

/// The domain that sends pages.
pub trait PageDonor: Send + Sync {
    /// Takes over pages that `peer` gave up, as XENMEM_increase_reservation: appends at most `pages`, possibly none, to
    /// `into`. Their bytes are `peer`'s own, or were sent to it: never another domain's.
    ///
    /// # Errors
    /// [`Error::NoSuchDomain`](crate::Error::NoSuchDomain).
    fn populate(&self, peer: DomId, pages: usize, into: &mut Vec<OwnedPage>) -> Result<()>;

    /// Transfers pages to peers whose entries accept them: `GNTTABOP_transfer`. Every operation gets a status; a page
    /// whose operation failed still belongs to this domain.
    ///
    /// # Errors
    /// The batch as a whole was not tried; no status is valid then.
    fn transfer(&self, ops: &mut [TransferOp]) -> Result<()>;
}

/// The domain that receives pages.
pub trait PageAcceptor: Send + Sync {
    /// Gives up at most `pages` unused pages for `peer` to take over, as XENMEM_decrease_reservation; returns how many.
    ///
    /// # Errors
    /// [`Error::NoSpace`](crate::Error::NoSpace) where this domain can share no memory with `peer`.
    fn balloon_out(&self, peer: DomId, pages: usize) -> Result<usize>;

    /// Gives up pages until `peer` has one for every entry that accepts a page from it, and for `entries` more: pages given
    /// up earlier count, also those of entries that are gone, and so do pages that `peer` lost when it exited. Returns for
    /// how many of all these entries there is no page.
    ///
    /// # Errors
    /// As [`PageAcceptor::balloon_out`].
    fn provide(&self, peer: DomId, entries: usize) -> Result<usize>;

    /// Allocates grant entries that each accept a page from `peer` (`GTF_accept_transfer`).
    ///
    /// # Errors
    /// [`Error::NoSpace`](crate::Error::NoSpace) without enough references.
    fn accept_transfer(&self, peer: DomId, entries: usize) -> Result<Box<dyn AcceptTransfer>>;
}

/// One page flip: `struct gnttab_transfer` (grant_table.h:447). A transferred page belongs to `domid`.
#[derive(Clone, Copy, Debug)]
pub struct TransferOp {
    /// The page: a frame number that this domain owns in the peer's arena ([`OwnedPage::frame`]).
    pub frame: u64,
    /// Which use of that frame it is ([`OwnedPage::token`]): the number is another page's once the peer has exited.
    pub token: u64,
    /// The domain that accepts it.
    pub domid: DomId,
    /// That domain's grant entry, which accepts a transfer.
    pub gref: GrantRef,
    /// The outcome, written by the call.
    pub status: Status,
}

impl TransferOp {
    /// Transfers `page` to the entry `gref` of `domid`.
    pub fn new(page: &OwnedPage, domid: DomId, gref: GrantRef) -> Self {
        Self { frame: page.frame(), token: page.token, domid, gref, status: Status::OKAY }
    }
}

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
// SAFETY: as above; access goes through `SharedSlice` or raw pointers only.
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

    /// Tells this use of the frame from every other, for [`TransferOp::token`](crate::TransferOp::token).
    pub fn token(&self) -> u64 {
        self.token
    }

    /// Returns `len` bytes of the page from `offset` on; `None` if they are not inside.
    #[inline]
    pub fn slice(&self, offset: usize, len: usize) -> Option<SharedSlice<'_>> {
        // SAFETY: a page that stays mapped while `self` is borrowed.
        let page = unsafe { SharedSlice::new(self.base.as_ptr(), PAGE_SIZE) };
        page.subslice(offset, len)
    }
}

impl Drop for OwnedPage {
    fn drop(&mut self) {
        self.owner.put(self.frame, self.token);
    }
}

impl fmt::Debug for OwnedPage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
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
    /// [`Error::Hypervisor`](crate::Error::Hypervisor) where the peer transferred a frame that this domain never gave up.
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
