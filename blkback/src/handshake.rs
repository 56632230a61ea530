//! The backend's xenbus state machine as a value: both ends' states and keys in, actions out.
//!
//! Initialising -> InitWait (features advertised) -> the frontend's Initialised or Connected -> Connected; Closing
//! and Closed follow the frontend, and a frontend that starts again gets InitWait again. A backend that finds a
//! frontend still Connected to its predecessor publishes InitWait and waits for new ring keys: requests may have
//! been answered out of order on the old ring, whose indexes therefore do not show which requests were lost.

use ring_abi::blkif::{info, key};
use ring_abi::ring::MAX_PAGES;
use ring_abi::{EventPort, GrantRef};
use xenbus::driver::DeviceState;
use xenbus::{KeyError, Keys, XenbusState};

use crate::engine::DiskInfo;

/// Value of the key `max-ring-page-order`: rings of up to 16 pages.
pub const MAX_RING_PAGE_ORDER: u32 = MAX_PAGES.ilog2();

/// The layout of the ring's slots: the key `protocol`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Abi {
    /// `x86_64-abi`, the native layout, and the default (BLKIF_PROTOCOL_DEFAULT of Linux's backend).
    X86_64,
    /// `x86_32-abi`.
    X86_32,
}

/// A connection's parameters, as the frontend published them.
///
/// ```
/// use blkback::handshake::{Abi, Negotiated};
/// use ring_abi::GrantRef;
/// use xenbus::Keys;
///
/// let keys = Keys::new("/local/domain/1/device/vbd/51712").with("ring-ref", 8).with("event-channel", 3);
/// let negotiated = Negotiated::from_keys(&keys)?;
/// assert_eq!((negotiated.abi, negotiated.refs), (Abi::X86_64, vec![GrantRef(8)]));
/// # Ok::<(), xenbus::KeyError>(())
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Negotiated {
    /// Layout of the ring's slots.
    pub abi: Abi,
    /// Grants of the ring's pages, 1 to 16, a power of two of them.
    pub refs: Vec<GrantRef>,
    /// The frontend's event channel.
    pub port: EventPort,
    /// The frontend uses persistent grants: the same pages again and again, all writable (`feature-persistent`).
    pub persistent: bool,
}

impl Negotiated {
    /// Parses the frontend's keys.
    ///
    /// # Errors
    /// A key is missing or malformed, or asks for more than the backend advertised.
    pub fn from_keys(keys: &Keys) -> Result<Negotiated, KeyError> {
        let abi = match keys.get(key::PROTOCOL).map(str::trim_ascii) {
            None | Some(key::PROTOCOL_X86_64) => Abi::X86_64,
            Some(key::PROTOCOL_X86_32) => Abi::X86_32,
            Some(_) => return Err(keys.error(key::PROTOCOL, "x86_64-abi or x86_32-abi")),
        };
        let port = EventPort(keys.need(key::EVENT_CHANNEL)?);
        if keys.or(key::MULTI_QUEUE_NUM_QUEUES, 1u32)? != 1 {
            return Err(keys.error(key::MULTI_QUEUE_NUM_QUEUES, "1, as multi-queue-max-queues says"));
        }
        let persistent = keys.or(key::FEATURE_PERSISTENT, 0u32)? != 0;
        Ok(Negotiated { abi, refs: refs(keys)?, port, persistent })
    }
}

impl std::fmt::Display for Negotiated {
    /// Writes all that distinguishes two rings of a device.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Negotiated { abi, refs, port, .. } = self;
        write!(
            f,
            "{abi:?} ring of grants {:?}, event channel {port}",
            refs.iter().map(|r| r.0).collect::<Vec<_>>()
        )
    }
}

fn refs(keys: &Keys) -> Result<Vec<GrantRef>, KeyError> {
    let order = match keys.opt::<u32>(key::RING_PAGE_ORDER)? {
        Some(order) if order > MAX_RING_PAGE_ORDER => {
            return Err(keys.error(key::RING_PAGE_ORDER, "a number from 0 to 4, as max-ring-page-order says"));
        }
        Some(order) => order,
        // `num-ring-pages` is the older key, in pages.
        None => match keys.or(key::NUM_RING_PAGES, 1u32)? {
            pages if pages.is_power_of_two() && pages <= MAX_PAGES as u32 => pages.ilog2(),
            _ => return Err(keys.error(key::NUM_RING_PAGES, "1, 2, 4, 8 or 16")),
        },
    };
    // A frontend with a ring of one page may write either key.
    if order == 0 && keys.get(&ring_ref(0)).is_none() {
        return Ok(vec![GrantRef(keys.need(key::RING_REF)?)]);
    }
    (0..1u32 << order).map(|page| Ok(GrantRef(keys.need(&ring_ref(page))?))).collect()
}

/// The key of a page of a ring of several pages.
fn ring_ref(page: u32) -> String {
    format!("{}{page}", key::RING_REF)
}

/// The keys that the backend publishes; `persistent`: persistent grants are supported.
pub fn advertised_keys(disk: &DiskInfo, persistent: bool) -> Keys {
    let flush = u8::from(disk.flush);
    Keys::default()
        .with(key::FEATURE_BARRIER, flush)
        .with(key::FEATURE_FLUSH_CACHE, flush)
        .with(key::FEATURE_PERSISTENT, u8::from(persistent))
        .with(key::MAX_RING_PAGE_ORDER, MAX_RING_PAGE_ORDER)
        .with(key::MAX_RING_PAGES, MAX_PAGES)
        .with(key::MULTI_QUEUE_MAX_QUEUES, 1)
        .with(key::SECTORS, disk.sectors)
        .with(key::SECTOR_SIZE, disk.sector_size)
        .with(key::PHYSICAL_SECTOR_SIZE, disk.physical_sector_size)
        .with(key::INFO, if disk.read_only { info::READONLY } else { 0 })
        .with(key::MODE, if disk.read_only { "r" } else { "w" })
}

/// The state of the ring's thread.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ring {
    /// There is none.
    None,
    /// It runs.
    Running,
    /// It was told to stop, and completes the requests in flight.
    Stopping,
    /// It exited without being told to: the frontend broke the protocol or is gone, or the disk failed.
    Ended,
}

/// What to do. [`Handshake::next`] is called again until it returns [`Action::Wait`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action {
    /// Wait until something changes.
    Wait,
    /// Publish [`advertised_keys`] and InitWait.
    Offer,
    /// Connect to this ring; then report [`Ring::Running`], or call [`Handshake::failed`].
    Connect(Negotiated),
    /// Publish the disk's properties and Connected.
    Connected,
    /// Stop the ring's thread.
    Disconnect,
    /// Report that the frontend's keys are invalid, and publish Closing.
    Refuse(KeyError),
    /// Publish this state.
    State(XenbusState),
}

/// One device's handshake.
#[derive(Clone, Debug, Default)]
pub struct Handshake {
    /// The state that this backend last published; Unknown before the first.
    state: XenbusState,
    /// Whether the frontend was Connected before this backend published anything.
    stale: Stale,
    /// The toolstack wants the device closed, as of the last [`Handshake::update`].
    unwanted: bool,
    /// The state in the store is not the one published: another process overwrote it, or the write was refused.
    overwritten: bool,
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
enum Stale {
    /// The frontend's ring is for this backend.
    #[default]
    No,
    /// The frontend's ring is the predecessor's; its keys are not read yet.
    Unread,
    /// The frontend's ring is the predecessor's, with these keys.
    Ring(Keys),
}

impl Handshake {
    /// The handshake of a backend that starts and finds these states and keys.
    pub fn new(found: &DeviceState) -> Handshake {
        let fresh = matches!(found.own_state, XenbusState::Unknown | XenbusState::Initialising);
        let stale =
            if found.other_state == XenbusState::Connected && !fresh { Stale::Unread } else { Stale::No };
        Handshake { state: XenbusState::Unknown, stale, unwanted: false, overwritten: false }
    }

    /// The handshake of a backend that resumes its predecessor's ring.
    pub fn resumed() -> Handshake {
        Handshake { state: XenbusState::Connected, ..Handshake::default() }
    }

    /// The state that this backend last published.
    pub fn state(&self) -> XenbusState {
        self.state
    }

    /// Records that connecting failed: the device closes.
    pub fn failed(&mut self) {
        self.state = XenbusState::Closing;
    }

    /// Records both ends' states after a change. Then [`Handshake::next`] returns what to do.
    pub fn update(&mut self, view: &DeviceState) {
        use XenbusState::{Closed, Closing};
        if view.other_state != XenbusState::Connected {
            self.stale = Stale::No;
        }
        // libxl closes by `online` = 0 and `state` = Closing. The state alone closes too, until the next update.
        let written = view.own_state == Closing && self.state != Closing && self.state != Closed;
        self.unwanted = !view.online || written;
        self.overwritten = view.own_state != self.state && self.state != XenbusState::Unknown;
    }

    /// Returns what to do, given both ends' states and keys as of the last update, and the ring's state now.
    pub fn next(&mut self, view: &DeviceState, ring: Ring) -> Action {
        let mut action = self.decide(view, ring);
        if action == Action::Wait && self.overwritten {
            action = Action::State(self.state);
        }
        self.overwritten &= matches!(action, Action::Wait | Action::Connect(_) | Action::Disconnect);
        match &action {
            Action::Offer => self.state = XenbusState::InitWait,
            Action::Connected => self.state = XenbusState::Connected,
            Action::Refuse(_) => self.state = XenbusState::Closing,
            Action::State(state) => self.state = *state,
            Action::Wait | Action::Connect(_) | Action::Disconnect => {}
        }
        action
    }

    fn decide(&mut self, view: &DeviceState, ring: Ring) -> Action {
        use XenbusState::{Closed, Closing, Connected, InitWait, Initialised, Unknown};
        let front = view.other_state;
        let unwanted = self.unwanted;
        match (front, ring) {
            // A malformed state is ignored.
            (Unknown, _) if !unwanted => Action::Wait,
            (_, Ring::Stopping) => Action::Wait,
            (Initialised | Connected, Ring::Ended) => self.state_once(Closing),
            (Initialised | Connected, _) if unwanted => self.state_once(Closing),
            (Initialised | Connected, _) => self.connect(view, ring),
            (Closing, _) => self.state_once(Closing),
            // The frontend has released its ring, or has none.
            (_, Ring::Running | Ring::Ended) => Action::Disconnect,
            (_, Ring::None) if unwanted => self.state_once(Closed),
            (Closed, Ring::None) if !matches!(self.state, Unknown | InitWait) => self.state_once(Closed),
            (_, Ring::None) if self.state != InitWait => Action::Offer,
            (_, Ring::None) => Action::Wait,
        }
    }

    /// The action for a frontend that is Initialised or Connected.
    fn connect(&mut self, view: &DeviceState, ring: Ring) -> Action {
        match (self.state, ring) {
            (XenbusState::InitWait, Ring::Running) => Action::Connected,
            // These keys were read before this backend's InitWait was published: the ring is the predecessor's.
            (XenbusState::InitWait, _) if view.own_state == XenbusState::Connected => Action::Wait,
            (XenbusState::InitWait, _) if self.is_stale(&view.other) => Action::Wait,
            (XenbusState::InitWait, _) if view.other.is_empty() => Action::Wait,
            (XenbusState::InitWait, _) => match Negotiated::from_keys(&view.other) {
                Ok(negotiated) => Action::Connect(negotiated),
                Err(error) => Action::Refuse(error),
            },
            // This backend was Closed, or is new: it advertises its features first.
            (XenbusState::Unknown | XenbusState::Closed, _) => Action::Offer,
            _ => Action::Wait,
        }
    }

    /// Whether the frontend's ring is still the predecessor's.
    fn is_stale(&mut self, keys: &Keys) -> bool {
        match &self.stale {
            Stale::No => false,
            Stale::Unread => {
                if !keys.is_empty() {
                    self.stale = Stale::Ring(ring_keys(keys));
                }
                true
            }
            Stale::Ring(old) if *old == ring_keys(keys) => true,
            Stale::Ring(_) => {
                self.stale = Stale::No;
                false
            }
        }
    }

    fn state_once(&self, state: XenbusState) -> Action {
        if self.state == state { Action::Wait } else { Action::State(state) }
    }
}

/// The keys that identify a ring.
fn ring_keys(keys: &Keys) -> Keys {
    let mut ring = Keys::default();
    let identifies = |name: &str| name.contains(key::RING_REF) || name.contains(key::EVENT_CHANNEL);
    ring.extend(keys.iter().filter(|(name, _)| identifies(name)));
    ring
}

#[cfg(test)]
mod tests;
