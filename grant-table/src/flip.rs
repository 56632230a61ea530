//! Page flipping: a backend's pool of pages to send, and a frontend's entries that receive them.
//!
//! A page that is sent leaves the backend's pool, which is refilled with pages that the frontend gives up. A frontend
//! gives up a page for every entry that accepts one, so that the backend has a page for every request that it sees. Where
//! it does not, the backend runs out of pages for this frontend alone.

use crate::{AcceptTransfer, Error, OwnedPage, PageAcceptor, PageDonor, Result, TransferOp};
use alloc::boxed::Box;
use alloc::collections::VecDeque;
use alloc::sync::Arc;
use alloc::vec::Vec;
use ring_abi::grant::Status;
use ring_abi::{DomId, GrantRef};

/// The backend's side: pages that one frontend gave up, to be filled and sent back.
///
/// ```
/// use grant_table::flip::{Receiver, Sender};
/// use hypervisor::local::Sandbox;
/// use ring_abi::DomId;
///
/// let sandbox = Sandbox::new()?;
/// let mut receiver = Receiver::new(sandbox.join(DomId(1))?, DomId::DOM0, 8)?;
/// let mut sender = Sender::new(sandbox.join(DomId::DOM0)?, DomId(1));
/// assert_eq!(sender.refill(1, 8)?, 8);
/// let page = sender.page().expect("the frontend gave up 8 pages");
/// page.slice(0, 5).unwrap().copy_from(b"frame");
/// sender.add(page, receiver.gref(0));
/// sender.flush(|_, status| assert!(status.is_okay()))?;
/// let received = receiver.take(0)?.expect("a page");
/// drop(received);
/// receiver.renew(|entry, _| assert_eq!(entry, 0))?;
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub struct Sender {
    donor: Arc<dyn PageDonor>,
    peer: DomId,
    pool: Vec<OwnedPage>,
    /// The pages of the batch, in the order of `ops`; `None` for those that the caller keeps.
    pages: Vec<Option<OwnedPage>>,
    ops: Vec<TransferOp>,
}

impl Sender {
    /// Creates a sender to `peer`, with an empty pool.
    pub fn new(donor: Arc<dyn PageDonor>, peer: DomId) -> Self {
        Self { donor, peer, pool: Vec::new(), pages: Vec::new(), ops: Vec::new() }
    }

    /// Takes over pages, at most `most` in one call, if the pool has fewer than `pages`. Returns how many it has. A backend
    /// wants at most as many as it has requests: those that it holds are missing elsewhere.
    ///
    /// # Errors
    /// As [`PageDonor::populate`].
    #[inline]
    pub fn refill(&mut self, pages: usize, most: usize) -> Result<usize> {
        if self.pool.len() < pages {
            let missing = most.max(pages) - self.pool.len();
            self.donor.populate(self.peer, missing, &mut self.pool)?;
        }
        Ok(self.pool.len())
    }

    /// Pages in the pool.
    pub fn available(&self) -> usize {
        self.pool.len()
    }

    /// The pages in the pool, in the order in which [`Sender::page`] takes them out.
    pub fn pages(&self) -> impl Iterator<Item = &OwnedPage> {
        self.pool.iter().rev()
    }

    /// Takes a page to fill out of the pool.
    #[inline]
    pub fn page(&mut self) -> Option<OwnedPage> {
        self.pool.pop()
    }

    /// Returns a page to the pool. It may have bytes that were to be sent to the peer, and no others.
    pub fn put_back(&mut self, page: OwnedPage) {
        self.pool.push(page);
    }

    /// Adds a page to the batch, for the frontend's entry `gref`.
    pub fn add(&mut self, page: OwnedPage, gref: GrantRef) {
        self.add_kept(&page, gref);
        self.pages[self.ops.len() - 1] = Some(page);
    }

    /// Adds a page that the caller keeps until the batch is sent, and drops then, whatever its status.
    pub fn add_kept(&mut self, page: &OwnedPage, gref: GrantRef) {
        self.ops.push(TransferOp::new(page, self.peer, gref));
        self.pages.push(None);
    }

    /// Sends the batch and calls `done` for each page, in order, with its entry and status. Pages that were not
    /// accepted return to the pool.
    ///
    /// # Errors
    /// As [`PageDonor::transfer`]; the batch is held then.
    pub fn flush(&mut self, mut done: impl FnMut(GrantRef, Status)) -> Result<()> {
        if self.ops.is_empty() {
            return Ok(());
        }
        self.donor.transfer(&mut self.ops)?;
        for (op, page) in self.ops.drain(..).zip(self.pages.drain(..)) {
            done(op.gref, op.status);
            if !op.status.is_okay() {
                self.pool.extend(page);
            }
        }
        Ok(())
    }
}

/// The frontend's side: entries that accept pages, and the pages it gives up for them.
pub struct Receiver {
    acceptor: Arc<dyn PageAcceptor>,
    peer: DomId,
    entries: Box<dyn AcceptTransfer>,
    /// Entries whose pages were taken, to accept another.
    idle: VecDeque<usize>,
}

impl Receiver {
    /// Allocates `entries` entries that accept pages from `peer`, and gives up as many pages.
    ///
    /// # Errors
    /// As [`PageAcceptor::accept_transfer`] and [`PageAcceptor::provide`]; [`Error::NoSpace`] without enough pages.
    pub fn new(acceptor: Arc<dyn PageAcceptor>, peer: DomId, entries: usize) -> Result<Self> {
        let accept = acceptor.accept_transfer(peer, entries)?;
        if acceptor.provide(peer, 0)? > 0 {
            return Err(Error::NoSpace("pages to give up for those received"));
        }
        Ok(Self { acceptor, peer, entries: accept, idle: VecDeque::with_capacity(entries) })
    }

    /// The reference of an entry, to be sent to the peer.
    ///
    /// # Panics
    /// If there is no such entry.
    pub fn gref(&self, index: usize) -> GrantRef {
        self.entries.refs()[index]
    }

    /// Takes the page that an entry received, if any; otherwise the entry still accepts one. Dropping the page frees it, so
    /// that it can be given up again.
    ///
    /// # Errors
    /// As [`AcceptTransfer::take`].
    #[inline]
    pub fn take(&mut self, index: usize) -> Result<Option<OwnedPage>> {
        let page = self.entries.take(index);
        if !matches!(page, Ok(None)) {
            self.idle.push_back(index);
        }
        page
    }

    /// Whether there are entries that accept no page since theirs was taken.
    pub fn is_short(&self) -> bool {
        !self.idle.is_empty()
    }

    /// Makes the entries whose pages were taken accept others, as far as there are free pages to give up for them, and calls
    /// `armed` with each and its reference. The caller then posts it. The others wait for the next call. Pages that the peer lost when it
    /// exited are made up for.
    ///
    /// # Errors
    /// As [`PageAcceptor::provide`].
    #[inline]
    pub fn renew(&mut self, mut armed: impl FnMut(usize, GrantRef)) -> Result<()> {
        let missing = self.acceptor.provide(self.peer, self.idle.len())?;
        let covered = self.idle.len().saturating_sub(missing);
        for index in self.idle.drain(..covered) {
            self.entries.arm(index);
            armed(index, self.entries.refs()[index]);
        }
        Ok(())
    }
}
