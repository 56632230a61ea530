//! A network interface: the shell that keeps a connection to whichever backend is there.
//!
//! A backend may close, die and come back: frames sent meanwhile are lost, the interface stays. All of the store is
//! dealt with in [`Nic::turn`]; sending and receiving touch memory only.

use crate::handshake::{Handshake, Identity, Offer, Step, TRANSPORT_KEYS, Wishes, keys};
use crate::link::{Broken, Counters, Link};
use crate::meta::Meta;
use event_channel::EventSet;
use hypervisor::Hypervisor;
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use ring_abi::netif::MAX_TX_SIZE;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;
use std::time::{Duration, Instant};
use xenstore::xenbus::DeviceEnd;
use xenstore::{Client, KeyError, Nodes, XenbusState, XsError};

/// How often a store that went away is looked for.
const STORE_RETRY: Duration = Duration::from_millis(100);
/// How long a backend may take to let go of an interface that is closed.
const PATIENCE: Duration = Duration::from_secs(5);
/// Steps of the handshake taken at once.
const STEPS: usize = 8;

/// What an interface is to do.
#[derive(Clone, Copy, Debug, Default)]
pub struct Config {
    /// Received packets may have checksums to be filled in, told in [`Meta::csum`]: for users such as taps.
    pub csum: bool,
    /// Received packets may be unsegmented TCP of up to 64 KiB - 1 bytes, told in [`Meta::gso`]; needs `csum`.
    pub gso: bool,
}

/// An interface cannot be opened, or is gone for good.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The store refused something, or has no such interface.
    #[error(transparent)]
    Store(#[from] xenstore::Error),
    /// A key is missing, or not of the expected form.
    #[error(transparent)]
    Key(#[from] KeyError),
    /// The connection could not be made.
    #[error(transparent)]
    Link(#[from] Broken),
    /// The system refused something.
    #[error("waiting: {0}")]
    System(#[from] io::Error),
    /// The toolstack has removed the interface.
    #[error("{0} was removed")]
    Removed(String),
}

/// What became of a packet to be sent.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Sent {
    /// The backend has it, or will with the next [`Nic::flush`].
    Queued,
    /// There is no room: ask for some by [`Nic::arm`].
    Full,
    /// There is no backend, or the packet is longer than it takes; it is lost.
    Dropped,
}

/// A network interface.
pub struct Nic {
    hv: Arc<dyn Hypervisor>,
    client: Option<Client>,
    end: DeviceEnd,
    wishes: Wishes,
    identity: Identity,
    handshake: Handshake,
    link: Option<Link>,
    /// Longest packet that the backend takes.
    longest: usize,
    /// What the backend of the latest connection takes.
    offer: Option<Offer>,
    event_set: EventSet,
    counters: Counters,
    /// The backend broke the protocol: nothing more is had to do with it.
    shunned: bool,
    retry: Instant,
}

impl Nic {
    /// Opens interface `device/vif/<devid>` of this domain. It comes up in the course of [`Nic::turn`]s.
    ///
    /// # Errors
    /// [`Error`]: there is no such interface, or it has no address.
    pub fn open(
        hv: Arc<dyn Hypervisor>,
        mut store: Client,
        devid: u32,
        config: Config,
    ) -> Result<Self, Error> {
        let path = format!("/local/domain/{}/device/vif/{devid}", hv.domid());
        let end = DeviceEnd::find_front(&mut store, &path)?;
        let identity = Identity::parse(&end.keys(&mut store)?, &end.other_keys(&mut store)?)?;
        let event_set = EventSet::new()?;
        let wishes = Wishes { csum: config.csum, gso: config.gso };
        let mut nic = Self {
            hv,
            client: None,
            end,
            wishes,
            identity,
            handshake: Handshake::default(),
            link: None,
            longest: 0,
            offer: None,
            event_set,
            counters: Counters::default(),
            shunned: false,
            retry: Instant::now(),
        };
        nic.begin(store)?;
        nic.turn()?;
        Ok(nic)
    }

    /// The interface's address.
    pub fn mac(&self) -> [u8; 6] {
        self.identity.mac
    }

    /// Largest payload of a frame in bytes.
    pub fn mtu(&self) -> u32 {
        self.identity.mtu
    }

    /// Whether frames flow.
    pub fn is_up(&self) -> bool {
        self.link.is_some() && self.handshake.is_running()
    }

    /// What the backend of the latest connection takes; `None` before the first.
    pub fn offer(&self) -> Option<&Offer> {
        self.offer.as_ref()
    }

    /// What went through.
    pub fn counters(&self) -> &Counters {
        &self.counters
    }

    /// Queues a finished frame; it goes out with the next [`Nic::flush`].
    #[inline]
    pub fn send(&mut self, frame: &[u8]) -> Sent {
        self.send_with_meta(frame, &Meta::NONE)
    }

    /// Queues a frame with work left to do.
    #[inline]
    pub fn send_with_meta(&mut self, frame: &[u8], meta: &Meta) -> Sent {
        self.send_in_place(frame.len(), meta, |at, to| to.copy_from(&frame[at..at + to.len()]))
    }

    /// Queues a frame of `len` bytes that `fill` writes where the backend reads it: called for each part, in order,
    /// with where the part begins in the frame.
    #[inline]
    pub fn send_in_place(
        &mut self,
        len: usize,
        meta: &Meta,
        fill: impl FnMut(usize, vm_memory::VolatileSlice<'_>),
    ) -> Sent {
        let Some(link) = self.link.as_mut().filter(|_| len <= self.longest) else { return Sent::Dropped };
        match link.send(len, meta, &mut self.counters, fill) {
            Ok(true) => Sent::Queued,
            Ok(false) => Sent::Full,
            Err(broken) => {
                self.broke(&broken);
                Sent::Dropped
            }
        }
    }

    /// Receives the next frame into the front of `into`: its length, and what is left to do. A frame longer than
    /// `into` is dropped and counted.
    #[inline]
    pub fn recv(&mut self, into: &mut [u8]) -> Option<(usize, Meta)> {
        match self.link.as_mut()?.recv(into, &mut self.counters) {
            Ok(received) => received,
            Err(broken) => {
                self.broke(&broken);
                None
            }
        }
    }

    /// Publishes what was sent and what buffers are free again. Call it once a batch, before sleeping at the latest.
    #[inline]
    pub fn flush(&mut self) {
        if let Some(Err(broken)) = self.link.as_mut().map(Link::flush) {
            self.broke(&broken);
        }
    }

    /// Flushes, and asks that [`Nic::fd`] becomes readable for frames received and, with `room`, for room to send;
    /// `true` if there is something already.
    pub fn arm(&mut self, room: bool) -> bool {
        self.flush();
        match self.link.as_mut().map(|link| link.arm(room, &mut self.event_set)) {
            Some(Ok(ready)) => ready,
            Some(Err(broken)) => {
                self.broke(&broken);
                true
            }
            None => false,
        }
    }

    /// Readable when an armed interface has something to do; then call [`Nic::turn`]. The same for life.
    pub fn fd(&self) -> BorrowedFd<'_> {
        self.event_set.as_fd()
    }

    /// Deals with events, the store's among them: connects, reconnects and closes. To be called when [`Nic::fd`] is
    /// readable, and now and then by users who never sleep: it is how they learn that the backend is gone.
    ///
    /// # Errors
    /// [`Error::Removed`], and what the system or the hypervisor has no more of. Not among them: anything that a
    /// backend does.
    pub fn turn(&mut self) -> Result<(), Error> {
        if let Some(Err(broken)) = self.link.as_mut().map(|link| link.take_events(&mut self.event_set)) {
            self.broke(&broken);
        }
        if self.client.is_none() && Instant::now() >= self.retry {
            self.find_store()?;
        }
        // Events come in with the replies to a look too, and of those the descriptor does not tell.
        loop {
            let Some(client) = &mut self.client else { return Ok(()) };
            match drain(client) {
                Ok(false) => return Ok(()),
                Ok(true) => self.look()?,
                Err(error) => self.lost(error)?,
            }
        }
    }

    /// Waits until there is something to do, at most `timeout`, and does what [`Nic::turn`] does.
    ///
    /// # Errors
    /// As [`Nic::turn`].
    pub fn wait(&mut self, room: bool, timeout: Duration) -> Result<(), Error> {
        if !self.arm(room) {
            let timeout = if self.client.is_none() { timeout.min(STORE_RETRY) } else { timeout };
            let timeout = PollTimeout::try_from(timeout).unwrap_or(PollTimeout::MAX);
            match poll(&mut [PollFd::new(self.fd(), PollFlags::POLLIN)], timeout) {
                Ok(_) | Err(Errno::EINTR) => {}
                Err(error) => return Err(io::Error::from(error).into()),
            }
        }
        self.turn()
    }

    /// Takes down the connection and tells the backend so.
    ///
    /// # Errors
    /// Those of the store.
    pub fn close(mut self) -> Result<(), Error> {
        self.shut()
    }

    /// As [`Nic::close`], for those who cannot give it away. Nothing is sent or received any more.
    ///
    /// # Errors
    /// Those of the store.
    pub fn shut(&mut self) -> Result<(), Error> {
        self.shunned = true;
        let said = self.leave();
        self.unlink();
        said
    }

    /// Closing, and Closed once the backend has followed: the pages are ours again only when it has let go of them.
    fn leave(&mut self) -> Result<(), Error> {
        use XenbusState::{Closed, Closing, Connected};
        let Some(client) = &mut self.client else { return Ok(()) };
        if self.link.is_some() && self.end.switch_state(client, Closing)? {
            await_back(client, &self.end, |back| back != Connected)?;
        }
        if self.end.switch_state(client, Closed)? {
            await_back(client, &self.end, |back| !matches!(back, Connected | Closing))?;
        }
        Ok(())
    }

    /// Starts over with this connection to the store.
    fn begin(&mut self, mut client: Client) -> Result<(), Error> {
        self.handshake = Handshake::default();
        self.event_set.add(client.fd())?;
        self.end.remove_keys(&mut client, TRANSPORT_KEYS)?;
        // Whoever had the interface before us is gone.
        self.end.switch_state(&mut client, XenbusState::Initialising)?;
        self.end.watch_other(&mut client, "back")?;
        client.watch(&format!("{}/state", self.end.path()), "own")?;
        self.client = Some(client);
        Ok(())
    }

    fn find_store(&mut self) -> Result<(), Error> {
        self.retry = Instant::now() + STORE_RETRY;
        let Ok(stream) = self.hv.store() else { return Ok(()) };
        match self.begin(Client::new(stream)) {
            // The store may be there before our nodes are.
            Err(Error::Store(error)) => {
                tracing::debug!(%error, "the store is not ready");
                Ok(())
            }
            other => other,
        }
    }

    fn lost(&mut self, error: xenstore::Error) -> Result<(), Error> {
        if matches!(error, xenstore::Error::EventsLost(_)) {
            return self.look();
        }
        tracing::warn!(path = self.end.path(), %error, "the store is gone; looking for it");
        self.unlink();
        if let Some(client) = self.client.take() {
            self.event_set.remove(client.fd());
        }
        Ok(())
    }

    /// Takes steps until there is nothing to do.
    fn look(&mut self) -> Result<(), Error> {
        for _ in 0..STEPS {
            match self.step() {
                Ok(true) => {}
                Ok(false) => return Ok(()),
                Err(Error::Store(error)) if error.store_error().is_none() => return self.lost(error),
                Err(error @ (Error::Removed(_) | Error::System(_))) => return Err(error),
                // No fault of the backend's.
                Err(error @ Error::Link(Broken::Hypervisor(hypervisor::Error::NoSpace(_)))) => {
                    return Err(error);
                }
                Err(error) => {
                    self.shun(&error);
                    return Ok(());
                }
            }
        }
        Ok(())
    }

    /// One step of the handshake; `false` if there was none to take.
    fn step(&mut self) -> Result<bool, Error> {
        let Some(client) = self.client.as_mut().filter(|_| !self.shunned) else { return Ok(false) };
        let own = self.end.state(client)?;
        if own == XenbusState::Unknown && is_gone(client.read(self.end.path())) {
            self.unlink();
            return Err(Error::Removed(self.end.path().to_owned()));
        }
        let back = self.end.other_state(client)?;
        let online = client.read_opt(&format!("{}/online", self.end.other_path()));
        let online = !matches!(online, Ok(Some(text)) if text == b"0");
        match self.handshake.step(own, back, online) {
            Step::Stay => return Ok(false),
            Step::Connect => self.connect()?,
            Step::Run => tracing::info!(path = self.end.path(), "up"),
            Step::End(state) => {
                // Said before it is done: otherwise the backend would take it for our death.
                let said = self.change(state);
                self.unlink();
                said?;
            }
        }
        Ok(true)
    }

    fn connect(&mut self) -> Result<(), Error> {
        let Some(client) = self.client.as_mut() else { return Ok(()) };
        let offer = Offer::parse(&self.end.other_keys(client)?)?;
        let link = Link::new(&*self.hv, self.end.other_id(), offer.split)?;
        link.listen(&self.event_set)?;
        self.longest = if offer.sg { MAX_TX_SIZE } else { hypervisor::PAGE_SIZE };
        let keys = keys(link.transport(), self.wishes);
        self.link = Some(link);
        self.offer = Some(offer);
        self.end.publish(client, &keys, XenbusState::Connected)?;
        Ok(())
    }

    /// Writes a state, and takes out the keys of a connection that is over.
    fn change(&mut self, state: XenbusState) -> Result<(), Error> {
        let Some(client) = self.client.as_mut() else { return Ok(()) };
        self.end.remove_keys(client, TRANSPORT_KEYS)?;
        self.end.switch_state(client, state)?;
        Ok(())
    }

    fn unlink(&mut self) {
        if let Some(link) = self.link.take() {
            link.unlisten(&self.event_set);
        }
        self.handshake = Handshake::default();
    }

    /// A link that ended by itself: what lies is shunned, what has died may come back.
    fn broke(&mut self, broken: &Broken) {
        match broken {
            Broken::Hypervisor(error) => {
                tracing::warn!(path = self.end.path(), %error, "the backend is gone");
                self.unlink();
                if let Err(error) = self.change(XenbusState::Closed) {
                    tracing::debug!(%error, "cannot say so");
                }
            }
            _ => self.shun(broken),
        }
    }

    /// Closes for good because of an error.
    fn shun(&mut self, error: &dyn std::fmt::Display) {
        self.unlink();
        self.shunned = true;
        let Some(client) = self.client.as_mut() else { return };
        self.end.error(client, Errno::EPROTO as i32, error);
        if let Err(error) = self.change(XenbusState::Closed) {
            tracing::debug!(%error, "cannot say so");
        }
    }
}

/// Waits for the backend, but not for ever: one that is dead never answers.
fn await_back(
    client: &mut Client,
    end: &DeviceEnd,
    wanted: impl Fn(XenbusState) -> bool,
) -> Result<(), Error> {
    let deadline = Instant::now() + PATIENCE;
    while !wanted(end.other_state(client)?) {
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            tracing::warn!(path = end.path(), "the backend does not let go");
            return Ok(());
        }
        client.wait_event(Some(left))?;
    }
    Ok(())
}

/// Whether a node of ours is no longer there; what stands above it may not be ours to see.
fn is_gone(read: Result<Vec<u8>, xenstore::Error>) -> bool {
    matches!(read, Err(e) if matches!(e.store_error(), Some(XsError::ENOENT | XsError::EACCES)))
}

/// Whether anything happened.
fn drain(client: &mut Client) -> Result<bool, xenstore::Error> {
    let mut any = false;
    while client.poll_event()?.is_some() {
        any = true;
    }
    Ok(any)
}
