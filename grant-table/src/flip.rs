//! Page flipping: a backend's pool of pages to send, and a frontend's entries that receive them.
//!
//! A page that is sent leaves the backend's pool, which is refilled with pages that the frontend gives up. A frontend
//! gives up as many pages as it receives, so that neither side runs out and no page is ever copied.

use hypervisor::{AcceptTransfer, DomId, GrantRef, Hypervisor, OwnedPage, Result, TransferOp};
use ring_abi::grant::Status;
use std::collections::VecDeque;
use std::sync::Arc;

/// The backend's side: pages that one frontend gave up, to be filled and sent back.
///
/// ```
/// use grant_table::flip::{Receiver, Sender};
/// use hypervisor::{DomId, local::Sandbox};
///
/// let sandbox = Sandbox::new()?;
/// let mut receiver = Receiver::new(sandbox.join(DomId(1))?, DomId::DOM0, 8)?;
/// let mut sender = Sender::new(sandbox.join(DomId::DOM0)?, DomId(1));
/// let page = sender.page()?.expect("the frontend gave up 8 pages");
/// page.slice(0, 5).unwrap().copy_from(&b"frame"[..]);
/// sender.add(page, receiver.gref(0));
/// sender.flush(|_, status| assert!(status.is_okay()))?;
/// let received = receiver.take(0)?.expect("a page");
/// drop(received);
/// assert_eq!(receiver.renew()?, 0);
/// # Ok::<(), hypervisor::Error>(())
/// ```
pub struct Sender {
    hypervisor: Arc<dyn Hypervisor>,
    peer: DomId,
    pool: Vec<OwnedPage>,
    /// The pages of the batch, in the order of `ops`.
    pages: Vec<OwnedPage>,
    ops: Vec<TransferOp>,
}

impl Sender {
    /// Creates a sender to `peer`, with an empty pool.
    pub fn new(hypervisor: Arc<dyn Hypervisor>, peer: DomId) -> Self {
        Self { hypervisor, peer, pool: Vec::new(), pages: Vec::new(), ops: Vec::new() }
    }

    /// Takes a page to fill; `None` while the frontend has given up none.
    ///
    /// # Errors
    /// As [`Hypervisor::populate`].
    pub fn page(&mut self) -> Result<Option<OwnedPage>> {
        if self.pool.is_empty() {
            // A batch's worth, so that the balloon queue is read rarely.
            self.hypervisor.populate(self.peer, 64, &mut self.pool)?;
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
    /// As [`Hypervisor::transfer`]; the batch is held then.
    pub fn flush(&mut self, mut done: impl FnMut(GrantRef, Status)) -> Result<()> {
        if self.ops.is_empty() {
            return Ok(());
        }
        self.hypervisor.transfer(&mut self.ops)?;
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
    hypervisor: Arc<dyn Hypervisor>,
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
    /// As [`Hypervisor::accept_transfer`] and [`Hypervisor::balloon_out`].
    pub fn new(hypervisor: Arc<dyn Hypervisor>, peer: DomId, entries: usize) -> Result<Self> {
        let accept = hypervisor.accept_transfer(peer, entries)?;
        let idle = VecDeque::with_capacity(entries);
        let mut receiver = Self { hypervisor, peer, entries: accept, idle, owed: entries };
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
    /// As [`Hypervisor::balloon_out`].
    pub fn renew(&mut self) -> Result<usize> {
        if self.owed > 0 {
            self.owed -= self.hypervisor.balloon_out(self.peer, self.owed)?;
        }
        while let Some(index) = self.idle.pop_front() {
            self.entries.arm(index);
        }
        Ok(self.owed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use hypervisor::local::{Options, Sandbox};

    const GUEST: DomId = DomId(1);

    fn setup(entries: usize) -> (Sandbox, Sender, Receiver) {
        let sandbox = Sandbox::new().unwrap();
        let small = Options { arena_pages: 64 };
        let guest = sandbox.join_with(GUEST, small).unwrap();
        let receiver = Receiver::new(guest, DomId::DOM0, entries).unwrap();
        let sender = Sender::new(sandbox.join(DomId::DOM0).unwrap(), GUEST);
        (sandbox, sender, receiver)
    }

    fn byte(page: &OwnedPage) -> u8 {
        let mut byte = [0u8];
        page.slice(4000, 1).unwrap().copy_to(&mut byte[..]);
        byte[0]
    }

    #[test]
    fn sender_and_receiver_of_equal_size_never_run_out_of_pages() {
        let (_sandbox, mut sender, mut receiver) = setup(8);
        for round in 0..1_000u32 {
            for entry in 0..8 {
                let page = sender.page().unwrap().expect("as many pages as entries");
                page.slice(4000, 1).unwrap().copy_from(&[(round + entry as u32) as u8][..]);
                sender.add(page, receiver.gref(entry));
            }
            sender.flush(|_, status| assert_eq!(status, Status::OKAY)).unwrap();
            for entry in 0..8 {
                let page = receiver.take(entry).unwrap().expect("it was sent");
                assert_eq!(byte(&page), (round + entry as u32) as u8);
            }
            assert_eq!(receiver.renew().unwrap(), 0);
        }
    }

    #[test]
    fn page_that_is_not_accepted_returns_to_the_pool() {
        let (_sandbox, mut sender, mut receiver) = setup(2);
        let gref = receiver.gref(0);
        for _ in 0..2 {
            let page = sender.page().unwrap().unwrap();
            sender.add(page, gref);
        }
        assert!(sender.page().unwrap().is_none());
        let mut statuses = Vec::new();
        sender.flush(|_, status| statuses.push(status)).unwrap();
        assert!(statuses[0].is_okay() && !statuses[1].is_okay());
        assert!(sender.page().unwrap().is_some());
        assert!(receiver.take(0).unwrap().is_some());
        assert!(receiver.take(1).unwrap().is_none());
    }

    #[test]
    fn receiver_gives_up_pages_only_once_received_ones_are_dropped() {
        let (_sandbox, mut sender, mut receiver) = setup(4);
        let mut held = Vec::new();
        loop {
            let Some(page) = sender.page().unwrap() else { break };
            sender.add(page, receiver.gref(0));
            sender.flush(|_, status| assert_eq!(status, Status::OKAY)).unwrap();
            held.push(receiver.take(0).unwrap().unwrap());
            receiver.renew().unwrap();
        }
        assert!(held.len() > 40, "only {} pages", held.len());
        assert!(receiver.renew().unwrap() > 0);
        held.clear();
        assert_eq!(receiver.renew().unwrap(), 0);
        assert!(sender.page().unwrap().is_some());
    }
}
