// Not a core: does I/O or calls a hypervisor.

//! The disk's connection to its backend: refreshed from the store, made, dropped and closed.

use event_channel::Notifier;
use grant_table::{Access, Shared};
use ring_abi::blkif::key;
use std::time::Instant;
use xenbus::{Keys, XenbusState, read_tree};

use crate::device::{CHANNEL, Disk};
use crate::error::{Error, Result};
use crate::handshake::{Action, Negotiated, ring_keys, ring_page_order};
use crate::queue::Fault;

/// Keys of a ring, or of the rings of a frontend with several queues; removed before a new ring is published.
const RING_KEYS: [&str; 4] =
    [key::RING_REF, key::RING_PAGE_ORDER, key::NUM_RING_PAGES, key::MULTI_QUEUE_NUM_QUEUES];

impl Disk {
    /// Follows the backend's state until the store has no more events. Some events arrive together with the replies
    /// to reads, and then the descriptor is not readable for them.
    pub(crate) fn refresh(&mut self) -> Result<()> {
        let _entered = self.span.clone().entered();
        self.take_events()?;
        loop {
            let again = self.refresh_once()?;
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

    /// `true` if a step was taken after which the next may follow at once.
    fn refresh_once(&mut self) -> Result<bool> {
        let state = self.end.other_state(&mut self.store)?;
        let keys = match state {
            XenbusState::InitWait | XenbusState::Connected => {
                read_tree(&mut self.store, self.end.other_path())?
            }
            _ => Keys::new(self.end.other_path()),
        };
        let action = self.handshake.next(state, &keys);
        let again = matches!(action, Action::State(_));
        self.perform(action, &keys)?;
        Ok(again)
    }

    fn perform(&mut self, action: Action, keys: &Keys) -> Result<()> {
        match action {
            Action::Wait => Ok(()),
            Action::State(state) => {
                tracing::debug!(%state, "closing an earlier connection");
                self.switch_state(state)
            }
            Action::Offer => self.offer(keys),
            Action::Connect(negotiated) => self.connected(negotiated),
            Action::Changed(negotiated) => {
                tracing::info!(sectors = negotiated.sectors, "resized");
                self.negotiated = Some(negotiated);
                Ok(())
            }
            Action::Disconnect => {
                tracing::warn!("disconnected: waiting for the backend");
                self.disconnect();
                Ok(())
            }
            Action::Close(error) => self.begin_close(error.map(Error::Key)),
        }
    }

    /// Grants a new ring, pushes unanswered requests again, and publishes the ring.
    fn offer(&mut self, keys: &Keys) -> Result<()> {
        self.disconnect();
        let order = ring_page_order(keys, self.options.ring_page_order)?;
        let ring = self.grants.share(self.peer, 1 << order, Access::ReadWrite)?;
        let mut notifier = Notifier::new(self.channels.alloc_unbound(self.peer)?);
        notifier.count_in(self.stats.events.clone());
        let keys = ring_keys(ring.refs(), notifier.port()).with(key::FEATURE_PERSISTENT, 0);
        if self.negotiated.is_some() {
            tracing::info!(in_flight = self.in_flight(), "reconnecting");
            // So that no successor of the backend takes the old ring for the new one.
            self.switch_state(XenbusState::Initialising)?;
        }
        self.end.remove_keys(&mut self.store, RING_KEYS)?;
        self.connect_queue(ring)?;
        notifier.register(&self.event_set, CHANNEL)?;
        self.notifier = Some(notifier);
        if !self.end.publish(&mut self.store, &keys, XenbusState::Initialised)? {
            return self.begin_close(None);
        }
        self.written = XenbusState::Initialised;
        Ok(())
    }

    /// Writes this end's state, unless the device was removed; its path may be another device's by now.
    fn switch_state(&mut self, state: XenbusState) -> Result<()> {
        if self.end.switch_state_after(&mut self.store, self.written, state)? {
            self.written = state;
        }
        Ok(())
    }

    fn connect_queue(&mut self, ring: Shared) -> Result<()> {
        Ok(self.queue.connect(ring)?)
    }

    fn connected(&mut self, negotiated: Negotiated) -> Result<()> {
        tracing::info!(sectors = negotiated.sectors, "connected");
        self.negotiated = Some(negotiated);
        self.switch_state(XenbusState::Connected)?;
        // Publishes the requests that an earlier backend did not answer.
        self.commit()
    }

    /// Drops ring and channel; requests stay in flight.
    pub(crate) fn disconnect(&mut self) {
        if let Some(notifier) = self.notifier.take() {
            notifier.unregister(&self.event_set);
        }
        drop(self.queue.disconnect());
    }

    /// Closes the device because the backend broke the protocol.
    pub(crate) fn fault(&mut self, fault: Fault) -> Error {
        let _entered = self.span.clone().entered();
        tracing::error!(error = %fault, "closing");
        self.disconnect();
        let _ = self.begin_close(None);
        fault.into()
    }

    /// Starts to close because the backend closes: no more requests are taken; once those in flight are answered this
    /// end becomes Closed. Ring and pages stay granted until the disk is dropped, as the backend may still map them.
    fn begin_close(&mut self, error: Option<Error>) -> Result<()> {
        self.handshake.close();
        self.switch_state(XenbusState::Closing)?;
        self.closing = true;
        self.finish_close()?;
        match error {
            Some(error) => {
                tracing::error!(%error, "closing");
                Err(error)
            }
            None => Ok(()),
        }
    }

    /// Writes Closed once no request is in flight any more.
    pub(crate) fn finish_close(&mut self) -> Result<()> {
        if self.closing && (self.in_flight() == 0 || !self.queue.is_connected()) {
            self.closing = false;
            self.switch_state(XenbusState::Closed)?;
        }
        Ok(())
    }

    /// Closes by the handshake: Closing, the backend's Closing, Closed, the backend's Closed.
    pub(crate) fn close_handshake(&mut self) -> Result<()> {
        use XenbusState::{Closed, Closing, Connected, Initialised};
        let _entered = self.span.clone().entered();
        let was_open = !self.handshake.is_closed();
        self.closing = false;
        self.handshake.close();
        if was_open {
            self.switch_state(Closing)?;
            self.await_back(|state| !matches!(state, Connected | Initialised))?;
        }
        self.switch_state(Closed)?;
        // The ring stays granted until the backend has unmapped it.
        self.await_back(|state| state != Closing && state != Connected)?;
        self.disconnect();
        Ok(())
    }

    /// Waits for the backend's state, for a limited time: a backend that was killed never changes it.
    fn await_back(&mut self, wanted: impl Fn(XenbusState) -> bool) -> Result<()> {
        let deadline = Instant::now() + self.options.timeout;
        while !wanted(self.end.other_state(&mut self.store)?) {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                tracing::warn!("timed out: the backend does not close");
                return Ok(());
            }
            self.store.wait_event(Some(left))?;
        }
        Ok(())
    }
}
