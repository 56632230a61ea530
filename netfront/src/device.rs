// Not a core: does I/O or calls a hypervisor.

//! A network interface: keeps a connection to the current backend, and reconnects when the backend does.
//!
//! While no backend is connected, frames to be sent are dropped and the interface stays. [`Nic::process_events`] does
//! all that touches the store; sending and receiving touch shared memory only.

mod follow;

use crate::config::Config;
use crate::connection::{Connection, UnusedPages};
use crate::error::Error;
use crate::handshake::{Identity, MANNER, Negotiated, Requested, RxChoice};
use crate::meta::Meta;
use crate::received::ReceivedFrame;
use crate::stats::{Counters, DropReason, Stats};
use event_channel::WaitEventChannels;
use event_loop::{Connector, Interest};
use grant_table::GrantTable;
use std::os::fd::BorrowedFd;
use std::sync::Arc;
use std::time::Duration;
use xenbus::frontend::{self, Frontend};

/// Every descriptor's token: [`Nic::process_events`] looks at all.
const ANY: u64 = 0;
/// Most times in a row that the backend's events are taken without a look at the store, which is a system call. Its events
/// last: after the backend's last one they make the descriptor readable again.
const STORE_ROUNDS: u32 = 16;
/// How long a backend may take to follow when the interface is closed.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(5);

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
    frontend: Frontend,
    requested: Requested,
    rx: RxChoice,
    split_event_channels: bool,
    identity: Identity,
    connection: Option<Connection>,
    /// The pages of no connection.
    unused: UnusedPages,
    /// Times in a row that the store was not looked at.
    store_rounds: u32,
    /// The store is to be looked at whether or not it is readable: replies may have brought events.
    store_due: bool,
    /// Longest packet that the backend takes, in bytes.
    max_len: usize,
    /// Features of the latest connection's backend.
    negotiated: Option<Negotiated>,
    stats: Arc<Stats>,
}

impl Nic {
    /// Opens interface `device/vif/<devid>` of this domain. It connects in the course of [`Nic::process_events`].
    ///
    /// # Errors
    /// [`Error::Store`] where there is no such interface, [`Error::Key`] where it has no address; and those of
    /// [`Nic::process_events`].
    pub fn open(
        grants: Arc<dyn GrantTable>,
        channels: Arc<dyn WaitEventChannels>,
        store: Arc<dyn Connector>,
        devid: u32,
        config: Config,
    ) -> Result<Self, Error> {
        let domid = grants.domid();
        // At level ERROR, to be part of log lines of any level.
        let span = tracing::error_span!("vif", %domid, devid);
        let mut frontend = Frontend::open(store, ANY, ("vif", domid, devid), MANNER, span)?;
        let end = frontend.end().clone();
        let client = frontend.link().client().ok_or(xenstore::Error::Closed)?;
        let identity = Identity::from_keys(&end.keys(client)?, &end.other_keys(client)?)?;
        let mut nic = Self {
            grants,
            channels,
            frontend,
            requested: Requested { csum: config.csum, gso: config.gso, flip: false },
            rx: config.rx,
            split_event_channels: config.split_event_channels,
            identity,
            connection: None,
            unused: UnusedPages::default(),
            store_rounds: 0,
            store_due: true,
            max_len: 0,
            negotiated: None,
            stats: Arc::default(),
        };
        let attached = frontend::attach(&mut nic);
        nic.survive(attached)?;
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
        self.connection.is_some() && self.frontend.is_connected()
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

    /// Whether received frames come in pages that change their owner, so that [`Nic::recv_pages`] receives them.
    pub fn flips(&self) -> bool {
        self.connection.as_ref().is_some_and(Connection::flips)
    }

    /// Receives the next frame with the pages that it came in, which are this domain's then, if [`Nic::flips`]: its offload
    /// metadata. The pages may be kept; as long as they are, fewer can be received.
    #[inline]
    pub fn recv_pages(&mut self, into: &mut ReceivedFrame) -> Option<Meta> {
        match self.connection.as_mut()?.recv_pages(into, &self.stats) {
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

    /// Flushes, and requests that [`Nic::fd`] becomes readable for what is needed: received frames, and free transmit slots
    /// after [`Nic::send`] found none; `true` if there are some already.
    pub fn arm(&mut self, needs: Interest) -> bool {
        self.flush();
        match self.connection.as_mut().map(|connection| connection.arm(needs, self.frontend.event_set())) {
            Some(Ok(ready)) => ready,
            Some(Err(error)) => {
                self.connection_failed(&error);
                true
            }
            None => self.store_due,
        }
    }

    /// Whether an armed interface has what it was armed for. Takes no event, unlike [`Nic::arm`].
    pub fn is_ready(&mut self, needs: Interest) -> bool {
        match self.connection.as_mut().map(|connection| connection.is_ready(needs)) {
            Some(Ok(ready)) => ready,
            Some(Err(error)) => {
                self.connection_failed(&error);
                true
            }
            None => false,
        }
    }

    /// Whether [`Nic::process_events`] is to be called though [`Nic::fd`] may not be readable: the connection has failed.
    #[inline]
    pub fn is_due(&self) -> bool {
        self.store_due
    }

    /// A descriptor that becomes readable when an armed interface has events; [`Nic::process_events`] is to be called
    /// then. It does not change over the interface's life.
    pub fn fd(&self) -> BorrowedFd<'_> {
        self.frontend.fd()
    }

    /// Processes pending events of the event channels and of the store: connects, reconnects and closes. To be called
    /// when [`Nic::fd`] is readable or [`Nic::is_due`], and regularly by users that poll without sleeping. It may leave the
    /// store's events where the backend has sent some too; the descriptor stays readable then.
    ///
    /// # Errors
    /// [`Error::Removed`]; [`Error::Io`]; [`Error::Store`] where the store refuses a request, but a lost connection;
    /// [`Error::Connection`] where the hypervisor has no more grants or ports, or no such domain. No key, response or event of a
    /// backend's is an error.
    pub fn process_events(&mut self) -> Result<(), Error> {
        let event_set = self.frontend.event_set();
        let taken = self.connection.as_mut().map_or(Ok(false), |c| c.take_events(event_set));
        let taken = taken.unwrap_or_else(|error| {
            self.connection_failed(&error);
            false
        });
        if taken && !self.store_due && self.store_rounds < STORE_ROUNDS {
            self.store_rounds += 1;
            return Ok(());
        }
        self.store_rounds = 0;
        self.store_due = false;
        let followed = frontend::follow(self);
        self.survive(followed)
    }

    /// Waits for an event, at most for `timeout`, and processes it as [`Nic::process_events`] does.
    ///
    /// # Errors
    /// Those of [`Nic::process_events`].
    pub fn wait(&mut self, want_tx: bool, timeout: Duration) -> Result<(), Error> {
        if !self.arm(Interest { input: true, room: want_tx }) {
            self.frontend.event_set().wait(Some(timeout))?;
        }
        self.process_events()
    }

    /// Closes the interface: writes Closing and Closed, and frees the connection.
    ///
    /// # Errors
    /// [`Error::Store`] where a state cannot be read or written.
    pub fn close(mut self) -> Result<(), Error> {
        self.shutdown()
    }

    /// Closes the interface as [`Nic::close`] does, for callers that cannot move it. It stays closed.
    ///
    /// # Errors
    /// [`Error::Store`] where a state cannot be read or written.
    pub fn shutdown(&mut self) -> Result<(), Error> {
        frontend::close(self, CLOSE_TIMEOUT)
    }
}
