//! What the disk does when the backend's state changes.

use hypervisor::{Access, Shared};
use nix::sys::epoll::{EpollEvent, EpollFlags};
use std::os::fd::AsFd;
use xenstore::xenbus::read_tree;
use xenstore::{Keys, XenbusState};

use crate::device::{CHANNEL, Disk, Link};
use crate::error::{Error, Result};
use crate::handshake::{Act, Info, ring_keys, ring_page_order};
use crate::queue::Fault;

/// Keys of a ring, or of the rings of a frontend with several; taken away before another is offered.
const RING_KEYS: [&str; 4] = ["ring-ref", "ring-page-order", "num-ring-pages", "multi-queue-num-queues"];

impl Disk {
    /// Looks at the backend until no event of the store is left: some come in with the replies to a look, and
    /// those the descriptor does not tell of.
    pub(crate) fn look(&mut self) -> Result<()> {
        self.take_events()?;
        loop {
            let again = self.look_once()?;
            if !self.take_events()? && !again {
                return Ok(());
            }
        }
    }

    /// Takes the store's events; `true` if there were any.
    fn take_events(&mut self) -> Result<bool> {
        let mut any = false;
        loop {
            match self.store.poll_event() {
                Ok(None) => return Ok(any),
                Ok(Some(_)) | Err(xenstore::Error::EventsLost(_)) => any = true,
                Err(error) => return Err(error.into()),
            }
        }
    }

    /// `true` where one step was taken and the next may follow at once.
    fn look_once(&mut self) -> Result<bool> {
        let state = self.end.other_state(&mut self.store)?;
        let keys = match state {
            XenbusState::InitWait | XenbusState::Connected => {
                read_tree(&mut self.store, self.end.other_path())?
            }
            _ => Keys::new(self.end.other_path()),
        };
        let act = self.handshake.next(state, &keys);
        let again = matches!(act, Act::Switch(_));
        self.act(act, &keys)?;
        Ok(again)
    }

    fn act(&mut self, act: Act, keys: &Keys) -> Result<()> {
        match act {
            Act::Nothing => Ok(()),
            Act::Switch(state) => {
                tracing::debug!(device = self.end.path(), %state, "ending an earlier session");
                self.end.switch_state(&mut self.store, state)?;
                Ok(())
            }
            Act::Offer => self.offer(keys),
            Act::Connect(info) => self.connected(info),
            Act::Changed(info) => {
                tracing::info!(device = self.end.path(), sectors = info.sectors, "the disk changed");
                self.info = Some(info);
                Ok(())
            }
            Act::Lost => {
                tracing::warn!(device = self.end.path(), "the backend is gone; waiting for the next");
                self.unlink();
                Ok(())
            }
            Act::Close(error) => self.give_up(error.map(Error::Key)),
        }
    }

    /// Grants a fresh ring, asks again what was not answered, and publishes it.
    fn offer(&mut self, keys: &Keys) -> Result<()> {
        self.unlink();
        let order = ring_page_order(keys, self.options.ring_page_order)?;
        let ring = self.hv.share(self.peer, 1 << order, Access::ReadWrite)?;
        let channel = self.hv.alloc_unbound(self.peer)?;
        let mut ours = ring_keys(ring.refs(), channel.port());
        if let Some(info) = self.info {
            tracing::info!(device = self.end.path(), sectors = info.sectors, "connecting again");
            // So that no successor takes the old ring for ours.
            self.end.switch_state(&mut self.store, XenbusState::Initialising)?;
        }
        self.end.remove_keys(&mut self.store, RING_KEYS)?;
        ours.set("feature-persistent", 0);
        self.connect_queue(ring)?;
        self.epoll.add(channel.as_fd(), EpollEvent::new(EpollFlags::EPOLLIN, CHANNEL))?;
        self.link = Some(Link { channel });
        if !self.end.publish(&mut self.store, &ours, XenbusState::Initialised)? {
            return self.give_up(None);
        }
        Ok(())
    }

    fn connect_queue(&mut self, ring: Shared) -> Result<()> {
        self.queue.connect(ring).map_err(|error| {
            let what = "laying the ring".to_owned();
            hypervisor::Error::Io { what, source: std::io::Error::other(error) }.into()
        })
    }

    fn connected(&mut self, info: Info) -> Result<()> {
        self.info = Some(info);
        self.end.switch_state(&mut self.store, XenbusState::Connected)?;
        // What was asked of an earlier backend goes out now.
        self.commit()
    }

    /// Lets go of ring and channel; requests stay in flight.
    pub(crate) fn unlink(&mut self) {
        if let Some(link) = self.link.take() {
            // Already gone if the peer's domain died.
            let _ = self.epoll.delete(link.channel.as_fd());
        }
        drop(self.queue.disconnect());
    }

    /// The backend broke the protocol.
    pub(crate) fn fault(&mut self, fault: Fault) -> Error {
        tracing::error!(device = self.end.path(), "closing the device: {fault}");
        self.unlink();
        let _ = self.give_up(None);
        fault.into()
    }

    /// The backend closes: nothing more is asked, what is in flight is waited for, then this end is Closed. Ring
    /// and pages stay granted until the disk is dropped, as the backend may not have let go of them yet.
    fn give_up(&mut self, error: Option<Error>) -> Result<()> {
        self.handshake.close();
        self.end.switch_state(&mut self.store, XenbusState::Closing)?;
        self.leaving = true;
        self.finish_leaving()?;
        match error {
            Some(error) => {
                tracing::error!(device = self.end.path(), "closing the device: {error}");
                Err(error)
            }
            None => Ok(()),
        }
    }

    /// Writes Closed once nothing is in flight any more.
    pub(crate) fn finish_leaving(&mut self) -> Result<()> {
        if self.leaving && (self.in_flight() == 0 || !self.queue.is_connected()) {
            self.leaving = false;
            self.end.switch_state(&mut self.store, XenbusState::Closed)?;
        }
        Ok(())
    }

    /// Closes in order: Closing, the backend's Closing, Closed, the backend's Closed.
    pub(crate) fn leave(&mut self) -> Result<()> {
        use XenbusState::{Closed, Closing, Connected, Initialised};
        let was_open = !self.handshake.is_closed();
        self.leaving = false;
        self.handshake.close();
        if was_open {
            self.end.switch_state(&mut self.store, Closing)?;
            self.await_back(|state| !matches!(state, Connected | Initialised))?;
        }
        self.end.switch_state(&mut self.store, Closed)?;
        // The ring stays until the backend is done with it.
        self.await_back(|state| state != Closing && state != Connected)?;
        self.unlink();
        Ok(())
    }

    /// Waits for the backend, but not for ever: one that is dead never answers.
    fn await_back(&mut self, wanted: impl Fn(XenbusState) -> bool) -> Result<()> {
        let deadline = std::time::Instant::now() + self.options.patience;
        while !wanted(self.end.other_state(&mut self.store)?) {
            let left = deadline.saturating_duration_since(std::time::Instant::now());
            if left.is_zero() {
                tracing::warn!(device = self.end.path(), "the backend does not let go");
                return Ok(());
            }
            self.store.wait_event(Some(left))?;
        }
        Ok(())
    }
}
