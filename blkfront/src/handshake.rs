//! The frontend's xenbus state machine as a value: the backend's state and keys in, actions out.

use alloc::format;
use ring_abi::blkif::info::READONLY;
use ring_abi::blkif::key;
use ring_abi::{EventPort, GrantRef};
use xenbus::{KeyError, Keys, XenbusState};

/// The disk's properties and features, as the backend published them.
///
/// ```
/// use blkfront::Negotiated;
/// use xenbus::Keys;
///
/// let keys = Keys::new("/local/domain/0/backend/vbd/1/51712").with("sectors", 2048).with("info", 4);
/// let negotiated = Negotiated::from_keys(&keys)?;
/// assert!(negotiated.read_only && negotiated.sector_size == 512);
/// # Ok::<(), xenbus::KeyError>(())
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Negotiated {
    /// Length in units of 512 bytes, whatever the sector size (as in every implementation in use).
    pub sectors: u64,
    /// Logical sector in bytes, a power of two from 512 to 4096: requests are aligned to it.
    pub sector_size: u32,
    /// Physical sector in bytes: requests aligned to it are fastest.
    pub physical_sector_size: u32,
    /// Writes fail.
    pub read_only: bool,
    /// Flushes are supported.
    pub flush: bool,
    /// Barriers are supported.
    pub barrier: bool,
}

impl Negotiated {
    /// Parses the backend's keys.
    ///
    /// # Errors
    /// `sectors` is missing, or a key is malformed or out of range.
    pub fn from_keys(keys: &Keys) -> Result<Negotiated, KeyError> {
        let sector_size = keys.or(key::SECTOR_SIZE, 512u32)?;
        if !sector_size.is_power_of_two() || !(512..=4096).contains(&sector_size) {
            return Err(keys.error(key::SECTOR_SIZE, "a power of two from 512 to 4096"));
        }
        let sectors = keys.need(key::SECTORS)?;
        if sectors > u64::MAX / 512 {
            return Err(keys.error(key::SECTORS, "a length in units of 512 bytes"));
        }
        Ok(Negotiated {
            sectors,
            sector_size,
            physical_sector_size: keys.or(key::PHYSICAL_SECTOR_SIZE, sector_size)?,
            read_only: keys.or(key::INFO, 0u32)? & READONLY != 0 || keys.get(key::MODE) == Some("r"),
            flush: keys.flag(key::FEATURE_FLUSH_CACHE)?,
            barrier: keys.flag(key::FEATURE_BARRIER)?,
        })
    }
}

/// The ring's size as the binary logarithm of its pages: the backend's maximum, but at most `requested`.
///
/// # Errors
/// A key is malformed.
pub fn ring_page_order(keys: &Keys, requested: u32) -> Result<u32, KeyError> {
    let max = match keys.opt::<u32>(key::MAX_RING_PAGE_ORDER)? {
        Some(order) => order,
        None => keys.or(key::MAX_RING_PAGES, 1u32)?.checked_ilog2().unwrap_or(0),
    };
    Ok(max.min(requested))
}

/// The keys that a frontend publishes for a ring.
pub fn ring_keys(refs: &[GrantRef], port: EventPort) -> Keys {
    let mut keys = Keys::default();
    match refs {
        [one] => {
            keys.set(key::RING_REF, one);
        }
        many => {
            keys.set(key::RING_PAGE_ORDER, many.len().ilog2());
            // Both keys, as Linux's frontend writes them.
            keys.set(key::NUM_RING_PAGES, many.len());
            keys.extend(
                many.iter().enumerate().map(|(page, gref)| (format!("{}{page}", key::RING_REF), gref)),
            );
        }
    }
    keys.with(key::EVENT_CHANNEL, port).with(key::PROTOCOL, key::PROTOCOL_X86_64)
}

/// What to do next.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action {
    /// Wait until something changes.
    Wait,
    /// Publish this state, which ends an earlier connection, and call [`Handshake::next`] again.
    State(XenbusState),
    /// Drop the ring if there is one, and publish a new one and Initialised.
    Offer,
    /// The backend is connected: publish Connected, and send requests.
    Connect(Negotiated),
    /// The disk's properties changed.
    Changed(Negotiated),
    /// The backend is gone: stop sending, and wait for its successor.
    Disconnect,
    /// The backend closes, or published an invalid key: publish Closed.
    Close(Option<KeyError>),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    /// No ring is published yet; this end's state in the store.
    Start(XenbusState),
    Offered,
    Connected(Negotiated),
    Disconnected,
    Closed,
}

/// One device's handshake.
#[derive(Clone, Debug)]
pub struct Handshake {
    stage: Stage,
}

impl Handshake {
    /// The handshake of a frontend that starts and finds this state of its own in the store.
    pub fn new(own: XenbusState) -> Handshake {
        Handshake { stage: Stage::Start(own) }
    }

    /// Whether requests may be sent.
    pub fn is_connected(&self) -> bool {
        matches!(self.stage, Stage::Connected(_))
    }

    /// Whether the device is closed for good.
    pub fn is_closed(&self) -> bool {
        self.stage == Stage::Closed
    }

    /// Records that this end closes.
    pub fn close(&mut self) {
        self.stage = Stage::Closed;
    }

    /// Returns what to do, given the backend's state and keys. Keys are read only if the state is Connected.
    pub fn next(&mut self, back: XenbusState, keys: &Keys) -> Action {
        use XenbusState::{Closed, Closing, Connected, InitWait};
        let action = match (self.stage, back) {
            (Stage::Closed, _) => Action::Wait,
            (Stage::Start(own), back) => start(own, back),
            (Stage::Connected(_) | Stage::Disconnected, InitWait) => Action::Offer,
            (Stage::Offered | Stage::Connected(_), Connected) => self.properties(keys),
            (_, Closing) => Action::Close(None),
            // Unknown: the state is malformed. Closed without Closing: the backend's domain was destroyed.
            (Stage::Connected(_), Closed | XenbusState::Initialising) => Action::Disconnect,
            _ => Action::Wait,
        };
        self.stage = match &action {
            Action::Wait => self.stage,
            Action::State(own) => Stage::Start(*own),
            Action::Offer => Stage::Offered,
            Action::Connect(negotiated) | Action::Changed(negotiated) => Stage::Connected(*negotiated),
            Action::Disconnect => Stage::Disconnected,
            Action::Close(_) => Stage::Closed,
        };
        action
    }

    fn properties(&self, keys: &Keys) -> Action {
        match (Negotiated::from_keys(keys), self.stage) {
            (Err(error), _) => Action::Close(Some(error)),
            (Ok(negotiated), Stage::Connected(old)) if negotiated == old => Action::Wait,
            (Ok(negotiated), Stage::Connected(_)) => Action::Changed(negotiated),
            (Ok(negotiated), _) => Action::Connect(negotiated),
        }
    }
}

/// Starts a connection, after ending an earlier one that was not closed. Linux's backend accepts Initialising only
/// while it is Closed, and reads this end's state only as it is now: each step waits for the backend's reaction.
fn start(own: XenbusState, back: XenbusState) -> Action {
    use XenbusState::{Closed, Closing, Connected, InitWait, Initialised, Initialising};
    match (own, back) {
        (Closing | Closed, Connected | Initialised) | (Closed, Closing) => Action::Wait,
        (_, Connected | Initialised) => Action::State(Closing),
        (_, Closing) => Action::State(Closed),
        (Initialising, InitWait) => Action::Offer,
        (Initialising, _) => Action::Wait,
        _ => Action::State(Initialising),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use XenbusState::{Closed, Closing, Connected, InitWait, Initialised, Initialising};

    fn keys() -> Keys {
        Keys::new("/b").with(key::SECTORS, 2048).with(key::FEATURE_FLUSH_CACHE, 1).with(key::INFO, 4)
    }

    const NEGOTIATED: Negotiated = Negotiated {
        sectors: 2048,
        sector_size: 512,
        physical_sector_size: 512,
        read_only: true,
        flush: true,
        barrier: false,
    };

    fn connected() -> Handshake {
        let mut hs = Handshake::new(Initialising);
        assert_eq!(hs.next(Initialising, &keys()), Action::Wait);
        assert_eq!(hs.next(InitWait, &keys()), Action::Offer);
        assert_eq!(hs.next(InitWait, &keys()), Action::Wait);
        assert_eq!(hs.next(Connected, &keys()), Action::Connect(NEGOTIATED));
        assert_eq!(hs.next(Connected, &keys()), Action::Wait);
        hs
    }

    /// How Linux's backend reacts to a frontend's state (`frontend_changed` of xen-blkback).
    fn linux(back: XenbusState, front: XenbusState) -> XenbusState {
        match front {
            Initialising if back == Closed => InitWait,
            Initialised | Connected => Connected,
            Closing | Closed => front,
            _ => back,
        }
    }

    #[test]
    fn linux_backend_connects_after_any_earlier_connection() {
        let states = [Initialising, InitWait, Initialised, Connected, Closing, Closed];
        for (own, back) in
            states.iter().flat_map(|own| [InitWait, Connected, Closing, Closed].map(|b| (*own, b)))
        {
            // Which end runs when: each may miss states of the other between two runs of its own.
            for turns in 0..1u32 << 10 {
                let mut hs = Handshake::new(own);
                let mut front = own;
                let mut linux_is = back;
                let mut offered = false;
                for turn in 0..40 {
                    match turns >> turn.min(31) & 1 {
                        // After the first ten turns both run alternately.
                        bit if bit == 1 || turn >= 10 && turn % 2 == 1 => linux_is = linux(linux_is, front),
                        _ => match hs.next(linux_is, &keys()) {
                            Action::State(state) => front = state,
                            Action::Offer => {
                                front = Initialised;
                                offered = true;
                            }
                            Action::Connect(_) => front = Connected,
                            Action::Wait => {}
                            action => panic!("{own} and {back} came to {action:?}"),
                        },
                    }
                }
                assert!(offered && hs.is_connected(), "{own} and {back}, {turns:#b}: {front} and {linux_is}");
            }
        }
    }

    #[test]
    fn new_size_changes_the_disk() {
        let negotiated = Negotiated { sectors: 4096, ..NEGOTIATED };
        assert_eq!(
            connected().next(Connected, &keys().with(key::SECTORS, 4096)),
            Action::Changed(negotiated)
        );
    }

    #[test]
    fn backend_that_restarts_gets_a_new_ring() {
        let mut killed = connected();
        assert_eq!(killed.next(InitWait, &keys()), Action::Offer);
        assert_eq!(killed.next(Connected, &keys()), Action::Connect(NEGOTIATED));
        let mut ended = connected();
        assert_eq!(ended.next(Closed, &keys()), Action::Disconnect);
        assert_eq!(ended.next(Closed, &keys()), Action::Wait);
        assert_eq!(ended.next(InitWait, &keys()), Action::Offer);
    }

    #[test]
    fn backend_that_closes_closes_the_device() {
        let mut hs = connected();
        assert_eq!(hs.next(Closing, &keys()), Action::Close(None));
        assert_eq!(hs.next(InitWait, &keys()), Action::Wait);
        assert!(hs.is_closed());
    }

    #[test]
    fn invalid_properties_close_the_device_and_name_the_key() {
        for (key, value) in [
            (key::SECTORS, "x"),
            (key::SECTORS, "18446744073709551615"),
            (key::SECTOR_SIZE, "0"),
            (key::SECTOR_SIZE, "768"),
            (key::SECTOR_SIZE, "1048576"),
            (key::INFO, "-1"),
        ] {
            let mut hs = Handshake::new(Initialising);
            hs.next(InitWait, &keys());
            let Action::Close(Some(error)) = hs.next(Connected, &keys().with(key, value)) else {
                panic!("{key}")
            };
            assert!(format!("{error}").starts_with(&format!("/b/{key}: found \"{value}\"")), "{error}");
        }
    }

    #[test]
    fn ring_page_order_is_the_smaller_of_both_ends() {
        let offers = |order: &str| Keys::new("/b").with(key::MAX_RING_PAGE_ORDER, order);
        assert_eq!(ring_page_order(&offers("4"), 2), Ok(2));
        assert_eq!(ring_page_order(&offers("1"), 2), Ok(1));
        assert_eq!(ring_page_order(&Keys::new("/b"), 2), Ok(0));
        assert_eq!(ring_page_order(&Keys::new("/b").with(key::MAX_RING_PAGES, 8), 4), Ok(3));
        let two = ring_keys(&[GrantRef(8), GrantRef(9)], EventPort(5));
        assert_eq!((two.get(key::RING_PAGE_ORDER), two.get("ring-ref1")), (Some("1"), Some("9")));
    }
}
