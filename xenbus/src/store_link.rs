//! A frontend's connection to the store, which is made again after it was lost.
//!
//! Rings and event channels need no store: a device that is connected works on meanwhile.

use std::sync::Arc;
use std::time::Duration;

use event_loop::{Connector, EventSet, Timer};
use xenstore::{Client, Error};

/// How often connecting is tried again.
const RETRY: Duration = Duration::from_millis(100);

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
    /// Expires when connecting is tried next.
    retry: Timer,
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
        Ok(StoreLink { store, client: Some(client), retry, token })
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
    /// [`LinkEvent::None`]: replies to reads may bring events with them, for which the set is not ready again.
    pub fn poll(&mut self, set: &EventSet) -> LinkEvent {
        let Some(client) = &mut self.client else { return self.reconnect(set) };
        match drain(client) {
            Ok(false) => LinkEvent::None,
            Ok(true) | Err(Error::EventsLost(_)) => LinkEvent::Changed,
            Err(error) => {
                self.lost(&error, set);
                LinkEvent::None
            }
        }
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
            set.remove(client.fd());
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

/// Takes all pending events; whether there were any.
fn drain(client: &mut Client) -> Result<bool, Error> {
    let mut any = false;
    while client.poll_event()?.is_some() {
        any = true;
    }
    Ok(any)
}
