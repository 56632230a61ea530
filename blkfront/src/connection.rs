// Not a core: does I/O or calls a hypervisor.

//! The disk's connection to its backend: refreshed from the store, made, dropped and closed.

use event_channel::Notifier;
use grant_table::Access;
use ring_abi::blkif::key;
use std::time::Instant;
use xenbus::{Keys, LinkEvent, XenbusState, read_tree};
use xenstore::{Nodes, XsError};

use crate::device::{CHANNEL, Disk};
use crate::error::{Error, Result};
use crate::handshake::{Action, Handshake, Negotiated, ring_keys, ring_page_order};
use crate::queue::Fault;

/// Keys of a ring, or of the rings of a frontend with several queues; removed before a new ring is published.
const RING_KEYS: [&str; 4] =
    [key::RING_REF, key::RING_PAGE_ORDER, key::NUM_RING_PAGES, key::MULTI_QUEUE_NUM_QUEUES];

/// What this end reports instead of closing a disk that is in use.
const IN_USE: &str = "the disk is in use; it is closed once it is not";

/// Whether the device is not this end's any more: its nodes are removed, or another device's, which is not touched yet.
fn is_removed(own: XenbusState, written: XenbusState, back: XenbusState) -> bool {
    match own {
        XenbusState::Unknown => back == XenbusState::Closed,
        XenbusState::Initialising => written != XenbusState::Initialising,
        _ => false,
    }
}

impl Disk {
    /// Follows the store until it has no more events. A lost connection to it is no error: requests in flight need none,
    /// and the link connects again.
    pub(crate) fn follow_store(&mut self) -> Result<()> {
        let _entered = self.span.clone().entered();
        loop {
            let followed = match self.link.poll(&self.event_set) {
                LinkEvent::None => return Ok(()),
                LinkEvent::Changed => self.refresh(),
                LinkEvent::Connected => self.attach(),
            };
            self.survive(followed)?;
        }
    }

    /// Drops the store's connection if `outcome` is that it is lost.
    fn survive(&mut self, outcome: Result<()>) -> Result<()> {
        match outcome {
            Err(Error::Store(error)) if error.is_disconnected() => {
                self.link.lost(&error, &self.event_set);
                Ok(())
            }
            other => other,
        }
    }

    /// Watches the backend over a new connection to the store. If the device was removed meanwhile, or another one has
    /// its node, this one is closed, so that no request reaches another disk. If it was connected it stays so; otherwise
    /// the handshake starts anew, as this end's last state may not have been written.
    pub(crate) fn attach(&mut self) -> Result<()> {
        use XenbusState::{Closed, Closing, Connected, Initialising, Unknown};
        let Some(client) = self.link.client() else { return Ok(()) };
        self.end.watch_other(client, "back")?;
        let own = self.end.state(client)?;
        let was_connected = self.negotiated.is_some();
        match own {
            _ if self.handshake.is_closed() => {
                self.switch_state(if self.closing { Closing } else { Closed })?;
            }
            Connected if self.handshake.is_connected() => self.written = own,
            Initialising | Unknown if was_connected && self.written != Initialising => {
                tracing::warn!("the device was removed while the store was lost");
                self.begin_close(None)?;
            }
            _ => {
                self.handshake = Handshake::new(own);
                self.written = own;
            }
        }
        Ok(())
    }

    /// Reads the backend's state, as after an event of it.
    pub(crate) fn follow_backend(&mut self) -> Result<()> {
        let _entered = self.span.clone().entered();
        let followed = self.refresh();
        self.survive(followed)?;
        // Events that came with the replies.
        self.follow_store()
    }

    fn refresh(&mut self) -> Result<()> {
        while self.refresh_once()? {}
        Ok(())
    }

    /// `true` if a step was taken after which the next may follow at once.
    fn refresh_once(&mut self) -> Result<bool> {
        let Some(client) = self.link.client() else { return Ok(false) };
        let state = self.end.other_state(client)?;
        let own = self.end.state(client)?;
        if is_removed(own, self.written, state) && !self.handshake.is_closed() {
            tracing::info!("the device was removed");
            self.disconnect();
            return self.begin_close(None).map(|()| false);
        }
        if state == XenbusState::Closing && self.in_use && self.handshake.is_connected() {
            return self.refuse_close().map(|()| false);
        }
        let keys = match state {
            XenbusState::InitWait | XenbusState::Connected => read_tree(client, self.end.other_path())?,
            _ => Keys::new(self.end.other_path()),
        };
        let action = self.handshake.next(state, &keys);
        let again = matches!(action, Action::State(_));
        self.perform(action, &keys)?;
        Ok(again)
    }

    /// Reports that the device is not closed, unless that is reported already.
    fn refuse_close(&mut self) -> Result<()> {
        let Some(client) = self.link.client() else { return Ok(()) };
        if !client.exists(&self.end.error_path())? {
            self.end.error(client, XsError::EBUSY.errno(), IN_USE);
        }
        Ok(())
    }

    /// Removes this end's error of an earlier connection, or that it was not closed.
    fn clear_error(&mut self) -> Result<()> {
        let Some(client) = self.link.client() else { return Ok(()) };
        Ok(self.end.clear_error(client)?)
    }

    /// Closes a device that the toolstack wants closed, though it is in use: its backend is gone.
    pub(crate) fn end_refusal(&mut self) -> Result<()> {
        let Some(client) = self.link.client().filter(|_| self.in_use) else { return Ok(()) };
        if self.handshake.is_connected() && self.end.other_state(client)? == XenbusState::Closing {
            self.disconnect();
            self.begin_close(None)?;
        }
        Ok(())
    }

    fn perform(&mut self, action: Action, keys: &Keys) -> Result<()> {
        match action {
            Action::Wait => Ok(()),
            Action::State(state) => {
                tracing::debug!(%state, "closing an earlier connection");
                self.switch_state(state).map(drop)
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
            if !self.switch_state(XenbusState::Initialising)? {
                tracing::warn!("the device was removed");
                return self.begin_close(None);
            }
        }
        let Some(client) = self.link.client() else { return Ok(()) };
        self.end.remove_keys(client, RING_KEYS)?;
        self.queue.connect(ring)?;
        notifier.register(&self.event_set, CHANNEL)?;
        self.notifier = Some(notifier);
        if !self.end.publish_after(client, self.written, &keys, XenbusState::Initialised)? {
            return self.begin_close(None);
        }
        self.written = XenbusState::Initialised;
        Ok(())
    }

    /// Writes this end's state; `false` if the device was removed, even where another one has its node now. Without a
    /// connection to the store the state is written later, by [`Disk::attach`].
    fn switch_state(&mut self, state: XenbusState) -> Result<bool> {
        let Some(client) = self.link.client() else { return Ok(false) };
        let written = self.end.switch_state_after(client, self.written, state);
        // After an error it may have been written.
        if !matches!(written, Ok(false)) {
            self.written = state;
        }
        Ok(written?)
    }

    fn connected(&mut self, negotiated: Negotiated) -> Result<()> {
        tracing::info!(sectors = negotiated.sectors, "connected");
        self.negotiated = Some(negotiated);
        self.clear_error()?;
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
        self.closing = true;
        let written = self.clear_error().and_then(|()| self.switch_state(XenbusState::Closing));
        let written = written.and_then(|_| self.finish_close());
        match error {
            Some(error) => {
                tracing::error!(%error, "closing");
                Err(error)
            }
            None => written,
        }
    }

    /// Writes Closed once no request is in flight any more.
    pub(crate) fn finish_close(&mut self) -> Result<()> {
        if self.closing && (self.in_flight() == 0 || !self.queue.is_connected()) {
            self.closing = false;
            let written = self.switch_state(XenbusState::Closed).map(drop);
            return self.survive(written);
        }
        Ok(())
    }

    /// Closes by the handshake: Closing, the backend's Closing, Closed, the backend's Closed.
    pub(crate) fn close_handshake(&mut self) -> Result<()> {
        use XenbusState::{Closed, Closing, Connected, Initialised};
        let _entered = self.span.clone().entered();
        if self.link.connect_now(&self.event_set) == LinkEvent::Connected {
            self.attach()?;
        }
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
        let client = self.link.client().ok_or(xenstore::Error::Closed)?;
        let deadline = Instant::now() + self.options.timeout;
        while !wanted(self.end.other_state(client)?) {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                tracing::warn!("timed out: the backend does not close");
                return Ok(());
            }
            client.wait_event(Some(left))?;
        }
        Ok(())
    }
}
