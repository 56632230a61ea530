// Not a core: does I/O or calls a hypervisor.

//! The control loop of a frontend: follows its backend's state, and carries out what the handshake says. The block and the
//! network frontend share it, as backends share [`driver`](crate::driver).
//!
//! A device has a [`Frontend`] and implements [`FrontDevice`]; then [`attach`] starts, [`follow`] takes the store's events,
//! and [`close`] ends. A lost connection to the store is no error: rings need none, and the link connects again. A device that
//! was removed, or replaced by another one with its number, is told so, and its nodes are not touched any more.
//!
//! ```
//! use event_loop::Connector;
//! use ring_abi::DomId;
//! use std::error::Error;
//! use std::sync::Arc;
//! use xenbus::frontend::{self, FrontDevice, Frontend};
//! use xenbus::handshake::front::Manner;
//! use xenbus::{Keys, XenbusState};
//!
//! /// A device whose ring is a page that is granted already.
//! struct Keyboard {
//!     frontend: Frontend,
//! }
//!
//! impl FrontDevice for Keyboard {
//!     type Error = Box<dyn Error>;
//!     const CONNECTION_KEYS: &[&str] = &["page-gref", "event-channel"];
//!     const BACKEND_KEYS: &[&str] = &["width"];
//!
//!     fn frontend(&mut self) -> &mut Frontend {
//!         &mut self.frontend
//!     }
//!
//!     fn offer(&mut self, _: &Keys) -> Result<Keys, Self::Error> {
//!         Ok(Keys::default().with("page-gref", 8).with("event-channel", 3))
//!     }
//!
//!     fn connected(&mut self, back: &Keys) -> Result<(), Self::Error> {
//!         println!("{} pixels wide", back.or("width", 640u32)?);
//!         Ok(())
//!     }
//!
//!     fn disconnected(&mut self) {}
//!
//!     fn removed(&mut self) -> Result<(), Self::Error> {
//!         Err("the keyboard was removed".into())
//!     }
//! }
//!
//! /// Connects until the keyboard is removed or closed.
//! fn run(store: Arc<dyn Connector>, domid: DomId) -> Result<(), Box<dyn Error>> {
//!     let manner = Manner { offers_with: XenbusState::Initialised, reopens: true };
//!     let span = tracing::Span::none();
//!     let frontend = Frontend::open(store, 0, ("vkbd", domid, 0), manner, span)?;
//!     let mut keyboard = Keyboard { frontend };
//!     frontend::attach(&mut keyboard)?;
//!     while !keyboard.frontend.is_closed() {
//!         keyboard.frontend.event_set().wait(None)?;
//!         frontend::follow(&mut keyboard)?;
//!     }
//!     Ok(())
//! }
//! ```

mod close;
mod follow;
mod store;

use std::os::fd::BorrowedFd;
use std::sync::Arc;

use event_loop::{Connector, EventSet};
use ring_abi::DomId;

pub use close::{close, fail, reconnect};
pub use follow::{attach, finish_close, follow, refresh};

use crate::XenbusState;
use crate::device_end::{Change, DeviceEnd, Expected};
use crate::handshake::front::{Handshake, Manner};
use crate::keys::{KeyError, Keys};
use crate::store_link::StoreLink;
use xenstore::Error;

/// The frontend of one device: its connection to the store, and where its handshake is.
pub struct Frontend {
    link: StoreLink,
    end: DeviceEnd,
    event_set: EventSet,
    handshake: Handshake,
    /// Which device it is, once the backend has said so.
    instance: Option<String>,
    /// The state that this end wrote last, or found.
    written: XenbusState,
    /// The device's nodes are not its own any more.
    removed: bool,
    span: tracing::Span,
}

/// What a frontend's driver does when its handshake says so.
pub trait FrontDevice {
    /// The driver's error, which the functions of this module return too.
    type Error: From<Error> + From<KeyError>;

    /// The keys of a connection, which are removed before the next. Some may be an earlier frontend's.
    const CONNECTION_KEYS: &[&str];

    /// The names of the backend's keys that the device reads, with `%u` for a number; others are not read from the store,
    /// however many the backend writes.
    const BACKEND_KEYS: &[&str];

    /// This device's frontend.
    fn frontend(&mut self) -> &mut Frontend;

    /// Makes new rings for a backend with these keys, instead of earlier ones, and returns the keys to be published.
    ///
    /// # Errors
    /// A key is invalid, or the rings cannot be made: the handshake stays where it is.
    fn offer(&mut self, back: &Keys) -> Result<Keys, Self::Error>;

    /// The backend with these keys serves the rings.
    ///
    /// # Errors
    /// A key is invalid.
    fn connected(&mut self, back: &Keys) -> Result<(), Self::Error>;

    /// The connected backend may have changed its keys, to these: for a disk's new size, for instance.
    ///
    /// # Errors
    /// A key is invalid.
    fn changed(&mut self, _back: &Keys) -> Result<(), Self::Error> {
        Ok(())
    }

    /// Drops the rings, if there are any: no backend serves them.
    fn disconnected(&mut self);

    /// Closed is published, after the backend or the toolstack has closed the device.
    fn closed(&mut self) {
        self.disconnected();
    }

    /// The device was removed or replaced.
    ///
    /// # Errors
    /// The driver's error for that, if it is one.
    fn removed(&mut self) -> Result<(), Self::Error>;

    /// Whether something is in flight that a connected backend will complete: Closed is not published before.
    fn is_busy(&self) -> bool {
        false
    }

    /// Whether the device is in use, so that a toolstack's request to close it is refused.
    fn is_in_use(&self) -> bool {
        false
    }

    /// Whether the backend that is or was connected is known to be gone: one that was closing by itself, not for the toolstack,
    /// is followed then even if the device is in use.
    fn is_backend_lost(&self) -> bool {
        false
    }
}

impl Frontend {
    /// Opens device `kind` `devid` of domain `domid`, which waits for its backend from [`attach`] on. What is to be waited
    /// for is in [`Frontend::event_set`] by `token`.
    ///
    /// # Errors
    /// [`Error::Io`] where the store cannot be connected, ENOENT where there is no such device.
    pub fn open(
        store: Arc<dyn Connector>,
        token: u64,
        (kind, domid, devid): (&str, DomId, u32),
        manner: Manner,
        span: tracing::Span,
    ) -> Result<Frontend, Error> {
        let path = format!("/local/domain/{domid}/device/{kind}/{devid}");
        let event_set = EventSet::new()?;
        let mut link = StoreLink::connect(store, &event_set, token)?;
        let client = link.client().ok_or(Error::Closed)?;
        let end = DeviceEnd::find_front(client, &path)?;
        let written = end.state(client)?;
        let handshake = Handshake::new(manner, written);
        Ok(Frontend { link, end, event_set, handshake, instance: None, written, removed: false, span })
    }

    /// The nodes of both ends.
    pub fn end(&self) -> &DeviceEnd {
        &self.end
    }

    /// The connection to the store.
    pub fn link(&mut self) -> &mut StoreLink {
        &mut self.link
    }

    /// What the device waits for: the store, and what its driver adds.
    pub fn event_set(&self) -> &EventSet {
        &self.event_set
    }

    /// A descriptor that is readable while something in the set is ready.
    pub fn fd(&self) -> BorrowedFd<'_> {
        use std::os::fd::AsFd;
        self.event_set.as_fd()
    }

    /// The device's span to be entered: none where the caller is in one of this name, as that has entered a span of the device for all that
    /// it does, and lines would name the device twice.
    fn span_to_enter(&self) -> tracing::Span {
        let name = |span: &tracing::Span| span.metadata().map(|metadata| metadata.name());
        if name(&tracing::Span::current()) == name(&self.span) {
            tracing::Span::none()
        } else {
            self.span.clone()
        }
    }

    /// The device's span, for log lines.
    pub fn span(&self) -> &tracing::Span {
        &self.span
    }

    /// Whether the backend serves the rings.
    #[inline]
    pub fn is_connected(&self) -> bool {
        self.handshake.is_connected()
    }

    /// Whether the device is closed, or closing, for good.
    #[inline]
    pub fn is_closed(&self) -> bool {
        self.handshake.is_closed()
    }

    /// Whether the backend or the toolstack closes the device, and something in flight is waited for.
    #[inline]
    pub fn is_closing(&self) -> bool {
        self.handshake.is_closing()
    }

    /// Writes a state, and what goes with it, if the store is as this end knows it, with `other` as the backend's state.
    /// `false`, and nothing is written, where it is not, or without a connection to the store.
    fn write(&mut self, other: Option<XenbusState>, change: &Change<'_>) -> Result<bool, Error> {
        let Some(client) = self.link.client().filter(|_| !self.removed) else { return Ok(false) };
        let expected =
            Expected { instance: self.instance.as_deref(), own: self.written, other, ..Expected::default() };
        let written = self.end.change(client, &expected, change);
        // After an error it may have been written; a device that has replaced this one is told by Initialising.
        let may_be = written.is_err() && change.state == XenbusState::Initialising;
        if may_be || matches!(written, Ok(true)) {
            self.written = change.state;
        }
        written
    }
}
