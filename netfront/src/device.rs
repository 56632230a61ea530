// Not a core: does I/O or calls a hypervisor.

//! A network interface: keeps a connection to the current backend, and reconnects when the backend does.
//!
//! While no backend is connected, frames to be sent are dropped and the interface stays. [`Nic::process_events`] does
//! all that touches the store; sending and receiving touch shared memory only.

mod close;

use crate::config::Config;
use crate::connection::Connection;
use crate::error::{ConnectionError, Error};
use crate::handshake::{Action, CONNECTION_KEYS, Handshake, Identity, Negotiated, Requested, frontend_keys};
use crate::meta::Meta;
use crate::stats::{Counters, DropReason, Stats};
use event_channel::WaitEventChannels;
use event_loop::{Connector, EventSet};
use grant_table::GrantTable;
use nix::errno::Errno;
use ring_abi::netif::{MAX_TX_SIZE, key};
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;
use std::time::Duration;
use xenbus::{DeviceEnd, LinkEvent, StoreLink, XenbusState};
use xenstore::{Client, Nodes, XsError};

/// Every descriptor's token: [`Nic::process_events`] looks at all.
const ANY: u64 = 0;
/// Most handshake actions carried out for one event.
const MAX_ACTIONS: usize = 8;

/// What became of a packet to be sent.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum SendOutcome {
    /// The packet is on the ring, and is published by the next [`Nic::flush`].
    Queued,
    /// The ring is full: [`Nic::arm`] requests an event for free slots.
    Full,
    /// The packet is lost: no backend is connected, or the packet is longer than the backend takes.
    Dropped,
}

/// A network interface.
pub struct Nic {
    grants: Arc<dyn GrantTable>,
    channels: Arc<dyn WaitEventChannels>,
    link: StoreLink,
    end: DeviceEnd,
    requested: Requested,
    identity: Identity,
    handshake: Handshake,
    connection: Option<Connection>,
    /// Longest packet that the backend takes, in bytes.
    max_len: usize,
    /// Features of the latest connection's backend.
    negotiated: Option<Negotiated>,
    event_set: EventSet,
    stats: Arc<Stats>,
    /// The backend broke the protocol, or the interface was shut down: it does not connect again.
    failed: bool,
    /// The state that this interface wrote last; `None` once its node was removed.
    written: Option<XenbusState>,
    span: tracing::Span,
}

impl Nic {
    /// Opens interface `device/vif/<devid>` of this domain. It connects in the course of [`Nic::process_events`].
    ///
    /// # Errors
    /// [`Error::Store`] where there is no such interface, [`Error::Key`] where it has no address.
    pub fn open(
        grants: Arc<dyn GrantTable>,
        channels: Arc<dyn WaitEventChannels>,
        store: Arc<dyn Connector>,
        devid: u32,
        config: Config,
    ) -> Result<Self, Error> {
        let domid = grants.domid();
        let path = format!("/local/domain/{domid}/device/vif/{devid}");
        // At level ERROR, to be part of log lines of any level.
        let span = tracing::error_span!("vif", %domid, devid);
        let event_set = EventSet::new()?;
        let mut link = StoreLink::connect(store, &event_set, ANY)?;
        let client = link.client().ok_or(xenstore::Error::Closed)?;
        let end = DeviceEnd::find_front(client, &path)?;
        let identity = Identity::parse(&end.keys(client)?, &end.other_keys(client)?)?;
        let mut nic = Self {
            grants,
            channels,
            link,
            end,
            requested: Requested { csum: config.csum, gso: config.gso },
            identity,
            handshake: Handshake::default(),
            connection: None,
            max_len: 0,
            negotiated: None,
            event_set,
            stats: Arc::default(),
            failed: false,
            written: None,
            span,
        };
        nic.attach()?;
        nic.process_events()?;
        Ok(nic)
    }

    /// The interface's address, in wire order.
    pub fn mac(&self) -> [u8; 6] {
        self.identity.mac.0
    }

    /// Largest payload of a frame in bytes.
    pub fn mtu(&self) -> u32 {
        self.identity.mtu
    }

    /// Whether frames flow.
    pub fn is_up(&self) -> bool {
        self.connection.is_some() && self.handshake.is_running()
    }

    /// Features of the latest connection's backend; `None` before the first connection.
    pub fn negotiated(&self) -> Option<&Negotiated> {
        self.negotiated.as_ref()
    }

    /// The values of the counters, over all connections.
    pub fn counters(&self) -> Counters {
        self.stats.read()
    }

    /// The counters, for other threads to read.
    pub fn stats(&self) -> &Arc<Stats> {
        &self.stats
    }

    /// Queues a finished frame. [`Nic::flush`] publishes it.
    #[inline]
    pub fn send(&mut self, frame: &[u8]) -> SendOutcome {
        self.send_with_meta(frame, &Meta::NONE)
    }

    /// Queues a frame with offload metadata.
    #[inline]
    pub fn send_with_meta(&mut self, frame: &[u8], meta: &Meta) -> SendOutcome {
        self.send_in_place(frame.len(), meta, |at, to| to.copy_from(&frame[at..at + to.len()]))
    }

    /// Queues a frame of `len` bytes that `fill` writes into the shared buffers. `fill` is called for each fragment in
    /// order, with the fragment's offset in the frame and its memory.
    #[inline]
    pub fn send_in_place(
        &mut self,
        len: usize,
        meta: &Meta,
        fill: impl FnMut(usize, vm_memory::VolatileSlice<'_>),
    ) -> SendOutcome {
        let Some(connection) = self.connection.as_mut().filter(|_| len <= self.max_len) else {
            return self.drop_frame();
        };
        match connection.send(len, meta, &self.stats, fill) {
            Ok(true) => SendOutcome::Queued,
            Ok(false) => SendOutcome::Full,
            Err(error) => {
                self.connection_failed(&error);
                SendOutcome::Dropped
            }
        }
    }

    #[cold]
    fn drop_frame(&self) -> SendOutcome {
        let is_down = self.connection.is_none();
        self.stats.dropped(if is_down { DropReason::Down } else { DropReason::TooLong });
        SendOutcome::Dropped
    }

    /// Receives the next frame into the start of `into`: its length and offload metadata. A frame longer than `into`
    /// is dropped and counted.
    #[inline]
    pub fn recv(&mut self, into: &mut [u8]) -> Option<(usize, Meta)> {
        match self.connection.as_mut()?.recv(into, &self.stats) {
            Ok(received) => received,
            Err(error) => {
                self.connection_failed(&error);
                None
            }
        }
    }

    /// Publishes queued frames and free receive buffers. To be called once a batch, and before sleeping.
    #[inline]
    pub fn flush(&mut self) {
        if let Some(Err(error)) = self.connection.as_mut().map(Connection::flush) {
            self.connection_failed(&error);
        }
    }

    /// Flushes, and requests that [`Nic::fd`] becomes readable for received frames and, with `want_tx`, for free
    /// transmit slots; `true` if there are some already.
    pub fn arm(&mut self, want_tx: bool) -> bool {
        self.flush();
        match self.connection.as_mut().map(|connection| connection.arm(want_tx, &self.event_set)) {
            Some(Ok(ready)) => ready,
            Some(Err(error)) => {
                self.connection_failed(&error);
                true
            }
            None => false,
        }
    }

    /// A descriptor that becomes readable when an armed interface has events; [`Nic::process_events`] is to be called
    /// then. It does not change over the interface's life.
    pub fn fd(&self) -> BorrowedFd<'_> {
        self.event_set.as_fd()
    }

    /// Processes pending events of the event channels and of the store: connects, reconnects and closes. To be called
    /// when [`Nic::fd`] is readable, and regularly by users that poll without sleeping.
    ///
    /// # Errors
    /// [`Error::Removed`]; [`Error::Io`]; [`Error::Connection`] where the hypervisor has no more grants or ports.
    /// Nothing that a backend does is an error.
    pub fn process_events(&mut self) -> Result<(), Error> {
        if let Some(Err(error)) = self.connection.as_mut().map(|c| c.take_events(&self.event_set)) {
            self.connection_failed(&error);
        }
        loop {
            match self.link.poll(&self.event_set) {
                LinkEvent::None => return Ok(()),
                event => self.process_store(event)?,
            }
        }
    }

    /// Waits for an event, at most for `timeout`, and processes it as [`Nic::process_events`] does.
    ///
    /// # Errors
    /// Those of [`Nic::process_events`].
    pub fn wait(&mut self, want_tx: bool, timeout: Duration) -> Result<(), Error> {
        if !self.arm(want_tx) {
            self.event_set.wait(Some(timeout))?;
        }
        self.process_events()
    }

    /// Sets watches over a new connection to the store. If the rings' connection was lost or never made, or the store has
    /// another state of this interface, the handshake starts anew, unless its node is another device's.
    fn attach(&mut self) -> Result<(), Error> {
        let Some(client) = self.link.client() else { return Ok(()) };
        self.end.watch_other(client, "back")?;
        client.watch(&format!("{}/{}", self.end.path(), key::STATE), "own")?;
        let own = self.end.state(client)?;
        if self.failed || is_removed(client, &self.end, own) {
            return Ok(());
        }
        if self.written.is_some() && is_replaced(own, self.written) {
            // Reported by the refresh that the watches' first events cause.
            return Ok(());
        }
        if self.connection.is_some() && own == XenbusState::Connected {
            self.written = Some(own);
            return Ok(());
        }
        self.drop_connection();
        self.written = Some(own);
        // Ends what an earlier process with this interface has left connected.
        self.write_state(XenbusState::Initialising)
    }

    fn process_store(&mut self, event: LinkEvent) -> Result<(), Error> {
        let _span = self.span.clone().entered();
        if event == LinkEvent::Changed {
            return self.refresh();
        }
        match self.attach() {
            Err(Error::Store(error)) => {
                self.link.lost(&error, &self.event_set);
                Ok(())
            }
            other => other,
        }
    }

    /// Reads both states and carries out actions until there is nothing to do.
    fn refresh(&mut self) -> Result<(), Error> {
        for _ in 0..MAX_ACTIONS {
            match self.step() {
                Ok(true) => {}
                Ok(false) => return Ok(()),
                Err(Error::Store(error)) if error.store_error().is_none() => {
                    self.link.lost(&error, &self.event_set);
                    return Ok(());
                }
                Err(error @ (Error::Removed(_) | Error::Io(_))) => return Err(error),
                // The hypervisor's limits are no fault of the backend's.
                Err(error @ Error::Connection(ConnectionError::Grant(grant_table::Error::NoSpace(_)))) => {
                    return Err(error);
                }
                Err(error) => {
                    self.fail(&error);
                    return Ok(());
                }
            }
        }
        Ok(())
    }

    /// Carries out the handshake's next action; `false` if there is none.
    fn step(&mut self) -> Result<bool, Error> {
        let Some(client) = self.link.client().filter(|_| !self.failed) else { return Ok(false) };
        let own = self.end.state(client)?;
        if is_removed(client, &self.end, own) || is_replaced(own, self.written) {
            self.drop_connection();
            self.written = None;
            return Err(Error::Removed(self.end.path().to_owned()));
        }
        let back = self.end.other_state(client)?;
        let online = client.read_opt(&format!("{}/{}", self.end.other_path(), key::ONLINE));
        let online = !matches!(online, Ok(Some(text)) if text == b"0");
        match self.handshake.step(own, back, online) {
            Action::Wait => return Ok(false),
            Action::Connect => self.connect()?,
            Action::Run => tracing::info!("connected"),
            Action::Close(state) => {
                // The state is written first: to a backend, an event channel that closes while the frontend is still
                // Connected means that the frontend has died.
                let written = self.write_state(state);
                self.drop_connection();
                written?;
            }
        }
        Ok(true)
    }

    fn connect(&mut self) -> Result<(), Error> {
        let Some(client) = self.link.client() else { return Ok(()) };
        let negotiated = Negotiated::parse(&self.end.other_keys(client)?)?;
        let back = self.end.other_id();
        let connection =
            Connection::new(&*self.grants, &*self.channels, back, negotiated.split, &self.stats)?;
        connection.register(&self.event_set, ANY)?;
        self.max_len = if negotiated.sg { MAX_TX_SIZE } else { ring_abi::PAGE_SIZE };
        let keys = frontend_keys(connection.info(), self.requested);
        self.connection = Some(connection);
        self.negotiated = Some(negotiated);
        let last = self.written.unwrap_or_default();
        // If the interface was removed, the next step finds it so.
        if self.end.publish_after(client, last, &keys, XenbusState::Connected)? {
            self.written = Some(XenbusState::Connected);
            self.end.clear_error(client)?;
        }
        Ok(())
    }

    /// Removes the connection's keys and writes a state, unless the interface was removed: another one may have its node.
    fn write_state(&mut self, state: XenbusState) -> Result<(), Error> {
        let Some(last) = self.written else { return Ok(()) };
        let Some(client) = self.link.client() else { return Ok(()) };
        let written = self.end.withdraw_after(client, last, &CONNECTION_KEYS, state);
        // After an error it may have been written, and a device that has replaced this one is told by Initialising.
        if matches!(written, Ok(true)) || written.is_err() && state == XenbusState::Initialising {
            self.written = Some(state);
        }
        written?;
        Ok(())
    }

    fn drop_connection(&mut self) {
        if let Some(connection) = self.connection.take() {
            connection.unregister(&self.event_set);
            tracing::info!("disconnected");
        }
        self.handshake = Handshake::default();
    }

    /// Closes after an error of the connection: for good only if the backend broke the protocol.
    fn connection_failed(&mut self, error: &ConnectionError) {
        let _span = self.span.clone().entered();
        match error {
            ConnectionError::Grant(_) | ConnectionError::Channel(_) => {
                tracing::warn!(%error, "closing the connection");
                self.drop_connection();
                self.write_state_or_log(XenbusState::Closed);
            }
            _ => self.fail(error),
        }
    }

    /// Closes for good because of an error.
    fn fail(&mut self, error: &dyn std::fmt::Display) {
        self.drop_connection();
        self.failed = true;
        let Some(client) = self.link.client() else { return };
        self.end.error(client, Errno::EPROTO as i32, error);
        self.write_state_or_log(XenbusState::Closed);
    }

    fn write_state_or_log(&mut self, state: XenbusState) {
        if let Err(error) = self.write_state(state) {
            tracing::debug!(%error, %state, "failed to write the state");
        }
    }
}

/// Whether the interface, whose state was read as `own`, was removed. EACCES counts: the node's parent may not be readable
/// for this domain.
fn is_removed(client: &mut Client, end: &DeviceEnd, own: XenbusState) -> bool {
    let read = (own == XenbusState::Unknown).then(|| client.read(end.path()));
    matches!(read, Some(Err(e)) if matches!(e.store_error(), Some(XsError::ENOENT | XsError::EACCES)))
}

/// Whether the interface's state is that of a new device, attached under its number after the interface was removed.
fn is_replaced(own: XenbusState, written: Option<XenbusState>) -> bool {
    own == XenbusState::Initialising && written != Some(XenbusState::Initialising)
}
