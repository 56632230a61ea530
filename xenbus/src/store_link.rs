// Not a core: does I/O or calls a hypervisor.

//! A frontend's connection to the store, which is made again after it was lost.
//!
//! Rings and event channels need no store: a device that is connected works on meanwhile.

use std::sync::Arc;
use std::time::{Duration, Instant};

use event_loop::{Connector, EventSet, Timer, TokenBucket};
use xenstore::{Client, Error};

/// How often connecting is tried again.
const RETRY: Duration = Duration::from_millis(100);

/// How often changes are told at once, and then in a second: a backend, which is not trusted, may go on changing its keys, and
/// reading them takes the time of the thread that has the device's ring.
const CHANGES_BURST: u64 = 50;
const CHANGES_RATE: u64 = 50;

/// Most events taken at once.
const MOST_EVENTS: usize = 1024;

/// What [`StoreLink::poll`] found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LinkEvent {
    /// Nothing: wait for the event set.
    None,
    /// Watched nodes may have changed: read them.
    Changed,
    /// There is a new connection: set watches on it, and read what they watch.
    Connected,
}

/// A connection to the store, or the wish for one. What makes it ready is in an [`EventSet`].
///
/// ```
/// use event_loop::{Connector, EventSet};
/// use std::sync::Arc;
/// use xenbus::{LinkEvent, StoreLink};
///
/// const STORE: u64 = 0;
///
/// /// Follows a node until the store says that it may not be read any more.
/// fn follow(store: Arc<dyn Connector>) -> Result<(), xenstore::Error> {
///     let set = EventSet::new()?;
///     let mut link = StoreLink::connect(store, &set, STORE)?;
///     link.client().expect("it is connected").watch("device", "token")?;
///     loop {
///         set.wait(None)?;
///         loop {
///             let event = link.poll(&set);
///             let Some(client) = link.client() else { break };
///             match event {
///                 LinkEvent::None => break,
///                 LinkEvent::Changed => println!("changed"),
///                 LinkEvent::Connected => client.watch("device", "token")?,
///             }
///         }
///     }
/// }
/// ```
pub struct StoreLink {
    store: Arc<dyn Connector>,
    client: Option<Client>,
    /// Expires when connecting is tried next, or when a connection's events are taken again.
    retry: Timer,
    /// No events are taken, and the connection is not in the set, until `retry` expires.
    is_paused: bool,
    changes: TokenBucket,
    /// The epoch of `changes`.
    started: Instant,
    token: u64,
}

impl StoreLink {
    /// Connects, and adds to `set`, by `token`, what is to be waited for: the present connection, and the time of the
    /// next attempt to make one.
    ///
    /// # Errors
    /// [`Error::Io`] where the store cannot be connected, or without descriptors.
    pub fn connect(store: Arc<dyn Connector>, set: &EventSet, token: u64) -> Result<StoreLink, Error> {
        let client = Client::connect(&store)?;
        let retry = Timer::new()?;
        set.add(client.fd(), token)?;
        set.add(&retry, token)?;
        let changes = TokenBucket::new(CHANGES_RATE, CHANGES_BURST, Duration::ZERO);
        let started = Instant::now();
        Ok(StoreLink { store, client: Some(client), retry, is_paused: false, changes, started, token })
    }

    /// The connection, if there is one.
    pub fn client(&mut self) -> Option<&mut Client> {
        self.client.as_mut()
    }

    /// Whether there is a connection.
    pub fn is_connected(&self) -> bool {
        self.client.is_some()
    }

    /// Takes all events of the connection, or tries to make one. To be called when the set was ready, until it returns
    /// [`LinkEvent::None`], which it does after a while whatever is written to watched nodes: replies to reads may bring
    /// events with them, for which the set is not ready again.
    pub fn poll(&mut self, set: &EventSet) -> LinkEvent {
        if self.client.is_none() {
            return self.reconnect(set);
        }
        if self.is_paused && !self.resume(set) {
            return LinkEvent::None;
        }
        let time = self.started.elapsed();
        if let Some(wait) = self.changes.wait(1, time).filter(|wait| !wait.is_zero()) {
            self.pause(wait, set);
            return LinkEvent::None;
        }
        let Some(client) = &mut self.client else { return LinkEvent::None };
        match drain(client) {
            Ok(false) => LinkEvent::None,
            Ok(true) | Err(Error::EventsLost(_)) => {
                self.changes.take(1, time);
                LinkEvent::Changed
            }
            Err(error) => {
                self.lost(&error, set);
                LinkEvent::None
            }
        }
    }

    /// Takes no events for a while: those that come meanwhile are one change.
    fn pause(&mut self, wait: Duration, set: &EventSet) {
        if let Some(client) = &self.client
            && self.retry.expire_after(wait).is_ok()
        {
            set.remove(client.fd());
            self.is_paused = true;
        }
    }

    /// Ends a pause if its time is over.
    fn resume(&mut self, set: &EventSet) -> bool {
        // A timer that cannot be read has expired.
        if !self.retry.take().unwrap_or(true) {
            return false;
        }
        self.is_paused = false;
        if let Some(Err(error)) = self.client.as_ref().map(|client| set.add(client.fd(), self.token)) {
            self.lost(&error.into(), set);
            return false;
        }
        true
    }

    /// As [`StoreLink::poll`], but without a connection tries at once to make one: before the device is closed, for
    /// instance.
    pub fn connect_now(&mut self, set: &EventSet) -> LinkEvent {
        match self.poll(set) {
            LinkEvent::None if self.client.is_none() => self.try_connect(set),
            event => event,
        }
    }

    /// Drops the connection because of an error; another is made soon.
    pub fn lost(&mut self, error: &Error, set: &EventSet) {
        if let Some(client) = self.client.take() {
            tracing::warn!(%error, "lost the connection to the store; reconnecting");
            if !std::mem::take(&mut self.is_paused) {
                set.remove(client.fd());
            }
        }
        self.retry_later();
    }

    fn reconnect(&mut self, set: &EventSet) -> LinkEvent {
        // A timer that cannot be read is one more attempt.
        if self.retry.take().unwrap_or(true) { self.try_connect(set) } else { LinkEvent::None }
    }

    fn try_connect(&mut self, set: &EventSet) -> LinkEvent {
        match self.open(set) {
            Ok(client) => {
                tracing::info!("connected to the store again");
                // Otherwise the set would be ready for good, for a timer that nobody takes.
                let _ = self.retry.cancel();
                self.client = Some(client);
                LinkEvent::Connected
            }
            Err(error) => {
                tracing::debug!(%error, "failed to connect to the store");
                self.retry_later();
                LinkEvent::None
            }
        }
    }

    fn open(&self, set: &EventSet) -> Result<Client, Error> {
        let client = Client::connect(&self.store)?;
        set.add(client.fd(), self.token)?;
        Ok(client)
    }

    fn retry_later(&self) {
        // `timerfd_settime` does not fail.
        let set = self.retry.expire_after(RETRY);
        debug_assert!(set.is_ok(), "{set:?}");
    }
}

/// Takes the pending events, but no more than a bound; whether there were any.
fn drain(client: &mut Client) -> Result<bool, Error> {
    for n in 0..MOST_EVENTS {
        if client.poll_event()?.is_none() {
            return Ok(n > 0);
        }
    }
    Ok(true)
}
