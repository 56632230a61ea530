//! The backend's xenbus state machine as a value: what both ends say goes in, what to do comes out.
//!
//! Initialising -> InitWait (features offered) -> the frontend's Initialised or Connected -> Connected; Closing and
//! Closed follow the frontend, and a frontend that starts again gets InitWait again. A backend that
//! finds a frontend still Connected to its predecessor offers InitWait and waits for new ring keys: requests may
//! have been answered out of order on the old ring, so that what was lost cannot be told from it.

use ring_abi::blkif::info;
use ring_abi::ring::MAX_PAGES;
use ring_abi::{EventPort, GrantRef};
use xenstore::driver::DeviceState;
use xenstore::{KeyError, Keys, XenbusState};

use crate::engine::DiskInfo;

/// `max-ring-page-order`: rings of up to 16 pages.
pub const MAX_RING_PAGE_ORDER: u32 = MAX_PAGES.ilog2();

/// The layout of the ring's slots: the `protocol` key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Abi {
    /// `x86_64-abi`, and native: what an absent key means (BLKIF_PROTOCOL_DEFAULT of Linux's backend).
    X86_64,
    /// `x86_32-abi`.
    X86_32,
}

/// Where the frontend's ring is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Transport {
    /// Layout of its slots.
    pub abi: Abi,
    /// Its pages, 1 to 16, a power of two of them.
    pub refs: Vec<GrantRef>,
    /// The frontend's event channel.
    pub port: EventPort,
    /// It uses the same pages again and again, and lets them be written: `feature-persistent`.
    pub persistent: bool,
}

impl Transport {
    /// Reads the frontend's keys.
    ///
    /// # Errors
    /// Names the key, what stands there and what should.
    pub fn from_keys(keys: &Keys) -> Result<Transport, KeyError> {
        let abi = match keys.get("protocol").map(str::trim_ascii) {
            None | Some("x86_64-abi") => Abi::X86_64,
            Some("x86_32-abi") => Abi::X86_32,
            Some(_) => return Err(keys.error("protocol", "x86_64-abi or x86_32-abi")),
        };
        let port = EventPort(keys.need("event-channel")?);
        if keys.or("multi-queue-num-queues", 1u32)? != 1 {
            return Err(keys.error("multi-queue-num-queues", "1, as multi-queue-max-queues says"));
        }
        let persistent = keys.or("feature-persistent", 0u32)? != 0;
        Ok(Transport { abi, refs: refs(keys)?, port, persistent })
    }
}

impl std::fmt::Display for Transport {
    /// All of it, so that two rings of a device are told apart.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Transport { abi, refs, port, .. } = self;
        write!(
            f,
            "{abi:?} ring of grants {:?}, event channel {port}",
            refs.iter().map(|r| r.0).collect::<Vec<_>>()
        )
    }
}

fn refs(keys: &Keys) -> Result<Vec<GrantRef>, KeyError> {
    let order = match keys.opt::<u32>("ring-page-order")? {
        Some(order) if order > MAX_RING_PAGE_ORDER => {
            return Err(keys.error("ring-page-order", "a number from 0 to 4, as max-ring-page-order says"));
        }
        Some(order) => order,
        // `num-ring-pages` is the older name, which speaks of pages.
        None => match keys.or("num-ring-pages", 1u32)? {
            pages if pages.is_power_of_two() && pages <= MAX_PAGES as u32 => pages.ilog2(),
            _ => return Err(keys.error("num-ring-pages", "1, 2, 4, 8 or 16")),
        },
    };
    // A frontend with one page may write either name.
    if order == 0 && keys.get("ring-ref0").is_none() {
        return Ok(vec![GrantRef(keys.need("ring-ref")?)]);
    }
    (0..1u32 << order).map(|page| Ok(GrantRef(keys.need(&format!("ring-ref{page}"))?))).collect()
}

/// What the backend offers and says of its disk; `persistent`: pages may stay mapped.
pub fn offer(disk: &DiskInfo, persistent: bool) -> Keys {
    let flush = u8::from(disk.flush);
    Keys::default()
        .with("feature-barrier", flush)
        .with("feature-flush-cache", flush)
        .with("feature-persistent", u8::from(persistent))
        .with("max-ring-page-order", MAX_RING_PAGE_ORDER)
        .with("max-ring-pages", MAX_PAGES)
        .with("multi-queue-max-queues", 1)
        .with("sectors", disk.sectors)
        .with("sector-size", disk.sector_size)
        .with("physical-sector-size", disk.physical_sector_size)
        .with("info", if disk.read_only { info::READONLY } else { 0 })
        .with("mode", if disk.read_only { "r" } else { "w" })
}

/// The service of the ring, as the shell knows it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ring {
    /// There is none.
    None,
    /// It runs.
    Running,
    /// It was told to stop and finishes what it has.
    Stopping,
    /// It ended by itself: the peer broke the protocol or is gone, or the disk failed.
    Ended,
}

/// What to do. [`Handshake::next`] is asked again until there is nothing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Act {
    /// Nothing until something changes.
    Nothing,
    /// Publish the offer and InitWait.
    Offer,
    /// Connect to this ring; then report [`Ring::Running`], or call [`Handshake::failed`].
    Connect(Transport),
    /// Publish the disk's properties and Connected.
    Connected,
    /// Stop the ring.
    Disconnect,
    /// The frontend's keys are wrong: tell it, publish Closing.
    Refuse(KeyError),
    /// Publish this state.
    State(XenbusState),
}

/// One device's handshake.
#[derive(Clone, Debug, Default)]
pub struct Handshake {
    /// What we last published; Unknown before the first.
    state: XenbusState,
    /// The frontend was Connected before we ever offered anything.
    stale: Stale,
    /// The toolstack wants the device closed, as far as the last look told.
    unwanted: bool,
    /// What stands in the store is not what we published: somebody overwrote it, or our write was refused.
    overwritten: bool,
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
enum Stale {
    /// The frontend's ring is for us.
    #[default]
    No,
    /// The frontend's ring is our predecessor's; its keys are not read yet.
    Unread,
    /// The frontend's ring is our predecessor's, and it is this one.
    Ring(Keys),
}

impl Handshake {
    /// A backend that starts and finds this.
    pub fn new(found: &DeviceState) -> Handshake {
        let fresh = matches!(found.own_state, XenbusState::Unknown | XenbusState::Initialising);
        let stale =
            if found.other_state == XenbusState::Connected && !fresh { Stale::Unread } else { Stale::No };
        Handshake { state: XenbusState::Unknown, stale, unwanted: false, overwritten: false }
    }

    /// A backend that goes on with the ring of its predecessor, as if it were itself that one.
    pub fn resumed() -> Handshake {
        Handshake { state: XenbusState::Connected, ..Handshake::default() }
    }

    /// What we last published.
    pub fn state(&self) -> XenbusState {
        self.state
    }

    /// Connecting failed, for whatever reason: the device closes.
    pub fn failed(&mut self) {
        self.state = XenbusState::Closing;
    }

    /// Something changed: both ends say this now. Then [`Handshake::next`] says what to do.
    pub fn see(&mut self, view: &DeviceState) {
        use XenbusState::{Closed, Closing};
        if view.other_state != XenbusState::Connected {
            self.stale = Stale::No;
        }
        // libxl closes by `online` = 0 and `state` = Closing. The state alone closes too, until the next look.
        let written = view.own_state == Closing && self.state != Closing && self.state != Closed;
        self.unwanted = !view.online || written;
        self.overwritten = view.own_state != self.state && self.state != XenbusState::Unknown;
    }

    /// What to do, given what both ends said when last seen and how the ring does now.
    pub fn next(&mut self, view: &DeviceState, ring: Ring) -> Act {
        let mut act = self.decide(view, ring);
        if act == Act::Nothing && self.overwritten {
            act = Act::State(self.state);
        }
        self.overwritten &= matches!(act, Act::Nothing | Act::Connect(_) | Act::Disconnect);
        match &act {
            Act::Offer => self.state = XenbusState::InitWait,
            Act::Connected => self.state = XenbusState::Connected,
            Act::Refuse(_) => self.state = XenbusState::Closing,
            Act::State(state) => self.state = *state,
            Act::Nothing | Act::Connect(_) | Act::Disconnect => {}
        }
        act
    }

    fn decide(&mut self, view: &DeviceState, ring: Ring) -> Act {
        use XenbusState::{Closed, Closing, Connected, InitWait, Initialised, Unknown};
        let (front, unwanted) = (view.other_state, self.unwanted);
        match (front, ring) {
            // What is no state says nothing.
            (Unknown, _) if !unwanted => Act::Nothing,
            (_, Ring::Stopping) => Act::Nothing,
            (Initialised | Connected, Ring::Ended) => self.state_once(Closing),
            (Initialised | Connected, _) if unwanted => self.state_once(Closing),
            (Initialised | Connected, _) => self.meet(view, ring),
            (Closing, _) => self.state_once(Closing),
            // The frontend let go of its ring, or has none.
            (_, Ring::Running | Ring::Ended) => Act::Disconnect,
            (_, Ring::None) if unwanted => self.state_once(Closed),
            (Closed, Ring::None) if !matches!(self.state, Unknown | InitWait) => self.state_once(Closed),
            (_, Ring::None) if self.state != InitWait => Act::Offer,
            (_, Ring::None) => Act::Nothing,
        }
    }

    /// The frontend wants to be, or is, connected.
    fn meet(&mut self, view: &DeviceState, ring: Ring) -> Act {
        match (self.state, ring) {
            (XenbusState::InitWait, Ring::Running) => Act::Connected,
            // It was looked at before our offer: the ring is our predecessor's.
            (XenbusState::InitWait, _) if view.own_state == XenbusState::Connected => Act::Nothing,
            (XenbusState::InitWait, _) if self.is_stale(&view.other) => Act::Nothing,
            (XenbusState::InitWait, _) if view.other.is_empty() => Act::Nothing,
            (XenbusState::InitWait, _) => match Transport::from_keys(&view.other) {
                Ok(transport) => Act::Connect(transport),
                Err(error) => Act::Refuse(error),
            },
            // We were closed, or are new: offers first.
            (XenbusState::Unknown | XenbusState::Closed, _) => Act::Offer,
            _ => Act::Nothing,
        }
    }

    /// Whether the frontend's ring is still our predecessor's.
    fn is_stale(&mut self, keys: &Keys) -> bool {
        match &self.stale {
            Stale::No => false,
            Stale::Unread => {
                if !keys.is_empty() {
                    self.stale = Stale::Ring(transport_keys(keys));
                }
                true
            }
            Stale::Ring(old) if *old == transport_keys(keys) => true,
            Stale::Ring(_) => {
                self.stale = Stale::No;
                false
            }
        }
    }

    fn state_once(&self, state: XenbusState) -> Act {
        if self.state == state { Act::Nothing } else { Act::State(state) }
    }
}

/// Which ring the keys speak of.
fn transport_keys(keys: &Keys) -> Keys {
    let mut ring = Keys::default();
    ring.extend(keys.iter().filter(|(key, _)| key.contains("ring-ref") || key.contains("event-channel")));
    ring
}

#[cfg(test)]
mod tests;
