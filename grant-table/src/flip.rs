//! Page flipping: a backend's pool of pages to send, and a frontend's entries that receive them.
//!
//! A page that is sent leaves the backend's pool, which is refilled with pages that the frontend gives up. A frontend
//! gives up as many pages as it receives, so that neither side runs out and no page is ever copied.

use crate::{AcceptTransfer, OwnedPage, PageAcceptor, PageDonor, Result, TransferOp};
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
/// let page = sender.page()?.expect("the frontend gave up 8 pages");
/// page.slice(0, 5).unwrap().copy_from(b"frame");
/// sender.add(page, receiver.gref(0));
/// sender.flush(|_, status| assert!(status.is_okay()))?;
/// let received = receiver.take(0)?.expect("a page");
/// drop(received);
/// assert_eq!(receiver.renew()?, 0);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub struct Sender {
    donor: Arc<dyn PageDonor>,
    peer: DomId,
    pool: Vec<OwnedPage>,
    /// The pages of the batch, in the order of `ops`.
    pages: Vec<OwnedPage>,
    ops: Vec<TransferOp>,
}

impl Sender {
    /// Creates a sender to `peer`, with an empty pool.
    pub fn new(donor: Arc<dyn PageDonor>, peer: DomId) -> Self {
        Self { donor, peer, pool: Vec::new(), pages: Vec::new(), ops: Vec::new() }
    }

    /// Takes a page to fill; `None` while the frontend has given up none.
    ///
    /// # Errors
    /// As [`PageDonor::populate`].
    pub fn page(&mut self) -> Result<Option<OwnedPage>> {
        if self.pool.is_empty() {
            // A batch's worth, so that the balloon queue is read rarely.
            self.donor.populate(self.peer, 64, &mut self.pool)?;
        }
        Ok(self.pool.pop())
    }

    /// Adds a page to the batch, for the frontend's entry `gref`.
    pub fn add(&mut self, page: OwnedPage, gref: GrantRef) {
        self.ops.push(TransferOp { frame: page.frame(), domid: self.peer, gref, status: Status::OKAY });
        self.pages.push(page);
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
                self.pool.push(page);
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
    /// Entries to be armed again.
    idle: VecDeque<usize>,
    /// Pages still to be given up.
    owed: usize,
}

impl Receiver {
    /// Allocates `entries` entries that accept pages from `peer`, and gives up as many pages.
    ///
    /// # Errors
    /// As [`PageAcceptor::accept_transfer`] and [`PageAcceptor::balloon_out`].
    pub fn new(acceptor: Arc<dyn PageAcceptor>, peer: DomId, entries: usize) -> Result<Self> {
        let accept = acceptor.accept_transfer(peer, entries)?;
        let idle = VecDeque::with_capacity(entries);
        let mut receiver = Self { acceptor, peer, entries: accept, idle, owed: entries };
        receiver.renew()?;
        Ok(receiver)
    }

    /// The reference of an entry, to be sent to the peer.
    ///
    /// # Panics
    /// If there is no such entry.
    pub fn gref(&self, index: usize) -> GrantRef {
        self.entries.refs()[index]
    }

    /// Takes the page that an entry received, if any. Dropping the page frees it, so that it can be given up again.
    ///
    /// # Errors
    /// As [`AcceptTransfer::take`].
    pub fn take(&mut self, index: usize) -> Result<Option<OwnedPage>> {
        let page = self.entries.take(index);
        if !matches!(page, Ok(None)) {
            self.idle.push_back(index);
            self.owed += usize::from(page.is_ok());
        }
        page
    }

    /// Gives up a page for each received one, if enough are free, and arms the entries whose pages were taken. The
    /// caller notifies the peer. Returns how many pages are still to be given up.
    ///
    /// # Errors
    /// As [`PageAcceptor::balloon_out`].
    pub fn renew(&mut self) -> Result<usize> {
        if self.owed > 0 {
            self.owed -= self.acceptor.balloon_out(self.peer, self.owed)?;
        }
        while let Some(index) = self.idle.pop_front() {
            self.entries.arm(index);
        }
        Ok(self.owed)
    }
}
