//! Flipping pages: a backend's stock of pages to send, and a frontend's entries that receive.
//!
//! A page sent is gone, and its place in the stock is filled from what the frontend gives up. So a frontend gives
//! up as many pages as it accepts: then neither side runs out, and no page is ever copied.

use hypervisor::{AcceptTransfer, DomId, GrantRef, Hypervisor, OwnedPage, Result, TransferOp};
use std::collections::VecDeque;
use std::sync::Arc;

/// A backend's pages of one frontend's arena: filled here, then sent.
pub struct Sender {
    hypervisor: Arc<dyn Hypervisor>,
    peer: DomId,
    stock: Vec<OwnedPage>,
    /// Pages to be sent, in step with `ops`.
    pages: Vec<OwnedPage>,
    ops: Vec<TransferOp>,
}

impl Sender {
    /// Sends to `peer`.
    pub fn new(hypervisor: Arc<dyn Hypervisor>, peer: DomId) -> Self {
        Self { hypervisor, peer, stock: Vec::new(), pages: Vec::new(), ops: Vec::new() }
    }

    /// A page to fill; `None` while the frontend has given up none.
    ///
    /// # Errors
    /// As [`Hypervisor::populate`].
    pub fn page(&mut self) -> Result<Option<OwnedPage>> {
        if self.stock.is_empty() {
            // As many as there may be in one batch, so that the queue is asked rarely.
            self.hypervisor.populate(self.peer, 64, &mut self.stock)?;
        }
        Ok(self.stock.pop())
    }

    /// Adds a page to the batch, for the frontend's entry `gref`.
    pub fn add(&mut self, page: OwnedPage, gref: GrantRef) {
        self.ops.push(TransferOp { frame: page.frame(), domid: self.peer, gref, status: 0 });
        self.pages.push(page);
    }

    /// Sends the batch; for each page, in order, `told` gets its entry and `GNTST_*`. Pages that were not accepted
    /// return to the stock.
    ///
    /// # Errors
    /// As [`Hypervisor::transfer`]; the batch is kept then.
    pub fn flush(&mut self, mut told: impl FnMut(GrantRef, i16)) -> Result<()> {
        if self.ops.is_empty() {
            return Ok(());
        }
        self.hypervisor.transfer(&mut self.ops)?;
        for (op, page) in self.ops.drain(..).zip(self.pages.drain(..)) {
            told(op.gref, op.status);
            if op.status != 0 {
                self.stock.push(page);
            }
        }
        Ok(())
    }
}

/// A frontend's entries that accept pages, and the pages it gives up for them.
pub struct Receiver {
    hypervisor: Arc<dyn Hypervisor>,
    peer: DomId,
    entries: Box<dyn AcceptTransfer>,
    /// Entries that are to accept again.
    idle: VecDeque<usize>,
    /// Pages still to be given up.
    owed: usize,
}

impl Receiver {
    /// Accepts as many pages at once as `entries`, from `peer`, and gives up as many.
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

    /// The reference of an entry, to be told to the peer.
    ///
    /// # Panics
    /// If there is no such entry.
    pub fn gref(&self, index: usize) -> GrantRef {
        self.entries.refs()[index]
    }

    /// The page that an entry received, if any; dropping it makes it one that can be given up.
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

    /// Gives up a page for each that came, as far as there are any, and lets the entries accept again. Each entry
    /// that does goes to nobody: the caller tells the peer. Says how many pages are still owed.
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

    fn world(entries: usize) -> (Sandbox, Sender, Receiver) {
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
    fn pages_go_round_for_ever() {
        let (_sandbox, mut sender, mut receiver) = world(8);
        for turn in 0..1_000u32 {
            for entry in 0..8 {
                let page = sender.page().unwrap().expect("as many pages as entries");
                page.slice(4000, 1).unwrap().copy_from(&[(turn + entry as u32) as u8][..]);
                sender.add(page, receiver.gref(entry));
            }
            sender.flush(|_, status| assert_eq!(status, 0)).unwrap();
            for entry in 0..8 {
                let page = receiver.take(entry).unwrap().expect("it was sent");
                assert_eq!(byte(&page), (turn + entry as u32) as u8);
            }
            assert_eq!(receiver.renew().unwrap(), 0);
        }
    }

    #[test]
    fn what_is_not_accepted_returns_to_the_stock() {
        let (_sandbox, mut sender, mut receiver) = world(2);
        let gref = receiver.gref(0);
        for _ in 0..2 {
            let page = sender.page().unwrap().unwrap();
            sender.add(page, gref);
        }
        assert!(sender.page().unwrap().is_none());
        let mut statuses = Vec::new();
        sender.flush(|_, status| statuses.push(status)).unwrap();
        assert!(statuses[0] == 0 && statuses[1] < 0);
        assert!(sender.page().unwrap().is_some());
        assert!(receiver.take(0).unwrap().is_some());
        assert!(receiver.take(1).unwrap().is_none());
    }

    #[test]
    fn a_frontend_that_keeps_its_pages_owes_them() {
        let (_sandbox, mut sender, mut receiver) = world(4);
        let mut kept = Vec::new();
        loop {
            let Some(page) = sender.page().unwrap() else { break };
            sender.add(page, receiver.gref(0));
            sender.flush(|_, status| assert_eq!(status, 0)).unwrap();
            kept.push(receiver.take(0).unwrap().unwrap());
            receiver.renew().unwrap();
        }
        assert!(kept.len() > 40, "only {} pages", kept.len());
        assert!(receiver.renew().unwrap() > 0);
        kept.clear();
        assert_eq!(receiver.renew().unwrap(), 0);
        assert!(sender.page().unwrap().is_some());
    }
}
