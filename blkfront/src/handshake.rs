//! The frontend's xenbus state machine as a value: what the backend says goes in, what to do comes out.

use alloc::format;
use ring_abi::blkif::info::READONLY;
use ring_abi::{EventPort, GrantRef};
use xenstore::{KeyError, Keys, XenbusState};

/// What the backend says of its disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Info {
    /// Length in units of 512 bytes, whatever the sector size (as every implementation in use has it).
    pub sectors: u64,
    /// Bytes to which requests are aligned, a power of two from 512 to 4096.
    pub sector_size: u32,
    /// Bytes to which requests are best aligned.
    pub physical_sector_size: u32,
    /// Writes are refused.
    pub read_only: bool,
    /// Flushes are supported.
    pub flush: bool,
    /// Barriers are supported.
    pub barrier: bool,
}

impl Info {
    /// Reads the backend's keys.
    ///
    /// # Errors
    /// Names the key, what stands there and what should.
    pub fn from_keys(keys: &Keys) -> Result<Info, KeyError> {
        let sector_size = keys.or("sector-size", 512u32)?;
        if !sector_size.is_power_of_two() || !(512..=4096).contains(&sector_size) {
            return Err(keys.error("sector-size", "a power of two from 512 to 4096"));
        }
        let sectors = keys.need("sectors")?;
        if sectors > u64::MAX / 512 {
            return Err(keys.error("sectors", "a length in units of 512 bytes"));
        }
        Ok(Info {
            sectors,
            sector_size,
            physical_sector_size: keys.or("physical-sector-size", sector_size)?,
            read_only: keys.or("info", 0u32)? & READONLY != 0 || keys.get("mode") == Some("r"),
            flush: keys.flag("feature-flush-cache")?,
            barrier: keys.flag("feature-barrier")?,
        })
    }
}

/// The largest ring the backend takes, in pages as a power of two; at most `wish`.
///
/// # Errors
/// As [`Info::from_keys`].
pub fn ring_page_order(keys: &Keys, wish: u32) -> Result<u32, KeyError> {
    let offered = match keys.opt::<u32>("max-ring-page-order")? {
        Some(order) => order,
        None => keys.or("max-ring-pages", 1u32)?.checked_ilog2().unwrap_or(0),
    };
    Ok(offered.min(wish))
}

/// The keys that tell the backend of a ring.
pub fn ring_keys(refs: &[GrantRef], port: EventPort) -> Keys {
    let mut keys = Keys::default();
    match refs {
        [one] => {
            keys.set("ring-ref", one);
        }
        many => {
            keys.set("ring-page-order", many.len().ilog2());
            // Both names, as Linux's frontend writes them.
            keys.set("num-ring-pages", many.len());
            keys.extend(many.iter().enumerate().map(|(page, gref)| (format!("ring-ref{page}"), gref)));
        }
    }
    keys.with("event-channel", port).with("protocol", "x86_64-abi")
}

/// What to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Act {
    /// Nothing until something changes.
    Nothing,
    /// An earlier session ends: publish this state, and ask again.
    Switch(XenbusState),
    /// Drop the ring if there is one, publish a fresh one and Initialised.
    Offer,
    /// The backend is connected, and its disk is this: publish Connected, send.
    Connect(Info),
    /// The disk is another now.
    Changed(Info),
    /// The backend is gone: stop sending and wait for the next one.
    Lost,
    /// The backend closes, or refused us, or says what cannot be: publish Closed and give up.
    Close(Option<KeyError>),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    /// Nothing is offered yet; this end's state in the store.
    Start(XenbusState),
    Offered,
    Connected(Info),
    Lost,
    Closed,
}

/// One device's handshake.
#[derive(Clone, Debug)]
pub struct Handshake {
    stage: Stage,
}

impl Handshake {
    /// A frontend that starts and finds this state of its own in the store.
    pub fn new(own: XenbusState) -> Handshake {
        Handshake { stage: Stage::Start(own) }
    }

    /// Whether requests may flow.
    pub fn is_connected(&self) -> bool {
        matches!(self.stage, Stage::Connected(_))
    }

    /// Whether the device is closed for good.
    pub fn is_closed(&self) -> bool {
        self.stage == Stage::Closed
    }

    /// This end closes.
    pub fn close(&mut self) {
        self.stage = Stage::Closed;
    }

    /// What to do, given what the backend says. Its keys are looked at only when it is Connected.
    pub fn next(&mut self, back: XenbusState, keys: &Keys) -> Act {
        use XenbusState::{Closed, Closing, Connected, InitWait};
        let act = match (self.stage, back) {
            (Stage::Closed, _) => Act::Nothing,
            (Stage::Start(own), back) => start(own, back),
            (Stage::Connected(_) | Stage::Lost, InitWait) => Act::Offer,
            (Stage::Offered | Stage::Connected(_), Connected) => self.properties(keys),
            (_, Closing) => Act::Close(None),
            // Unknown: its node is being written, or is nonsense. Closed without Closing: its domain went down.
            (Stage::Connected(_), Closed | XenbusState::Initialising) => Act::Lost,
            _ => Act::Nothing,
        };
        self.stage = match &act {
            Act::Nothing => self.stage,
            Act::Switch(own) => Stage::Start(*own),
            Act::Offer => Stage::Offered,
            Act::Connect(info) | Act::Changed(info) => Stage::Connected(*info),
            Act::Lost => Stage::Lost,
            Act::Close(_) => Stage::Closed,
        };
        act
    }

    fn properties(&self, keys: &Keys) -> Act {
        match (Info::from_keys(keys), self.stage) {
            (Err(error), _) => Act::Close(Some(error)),
            (Ok(info), Stage::Connected(old)) if info == old => Act::Nothing,
            (Ok(info), Stage::Connected(_)) => Act::Changed(info),
            (Ok(info), _) => Act::Connect(info),
        }
    }
}

/// Begins, or first ends a session that nobody closed. Linux's backend takes Initialising for a beginning only when
/// it is Closed, and looks at what this end's state is, not at what it was: each step waits for its answer.
fn start(own: XenbusState, back: XenbusState) -> Act {
    use XenbusState::{Closed, Closing, Connected, InitWait, Initialised, Initialising};
    match (own, back) {
        (Closing | Closed, Connected | Initialised) | (Closed, Closing) => Act::Nothing,
        (_, Connected | Initialised) => Act::Switch(Closing),
        (_, Closing) => Act::Switch(Closed),
        (Initialising, InitWait) => Act::Offer,
        (Initialising, _) => Act::Nothing,
        _ => Act::Switch(Initialising),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use XenbusState::{Closed, Closing, Connected, InitWait, Initialised, Initialising};

    fn keys() -> Keys {
        Keys::new("/b").with("sectors", 2048).with("feature-flush-cache", 1).with("info", 4)
    }

    const INFO: Info = Info {
        sectors: 2048,
        sector_size: 512,
        physical_sector_size: 512,
        read_only: true,
        flush: true,
        barrier: false,
    };

    fn connected() -> Handshake {
        let mut hs = Handshake::new(Initialising);
        assert_eq!(hs.next(Initialising, &keys()), Act::Nothing);
        assert_eq!(hs.next(InitWait, &keys()), Act::Offer);
        assert_eq!(hs.next(InitWait, &keys()), Act::Nothing);
        assert_eq!(hs.next(Connected, &keys()), Act::Connect(INFO));
        assert_eq!(hs.next(Connected, &keys()), Act::Nothing);
        hs
    }

    /// What Linux's backend makes of a frontend's state (`frontend_changed` of xen-blkback).
    fn linux(back: XenbusState, front: XenbusState) -> XenbusState {
        match front {
            Initialising if back == Closed => InitWait,
            Initialised | Connected => Connected,
            Closing | Closed => front,
            _ => back,
        }
    }

    #[test]
    fn linux_is_met_whatever_an_earlier_session_left() {
        let states = [Initialising, InitWait, Initialised, Connected, Closing, Closed];
        for (own, back) in
            states.iter().flat_map(|own| [InitWait, Connected, Closing, Closed].map(|b| (*own, b)))
        {
            // Which end has its turn: each may miss what the other was between two of its own.
            for turns in 0..1u32 << 10 {
                let (mut hs, mut front, mut linux_is) = (Handshake::new(own), own, back);
                let mut offered = false;
                for turn in 0..40 {
                    match turns >> turn.min(31) & 1 {
                        // After the first ten both have theirs by turns.
                        bit if bit == 1 || turn >= 10 && turn % 2 == 1 => linux_is = linux(linux_is, front),
                        _ => match hs.next(linux_is, &keys()) {
                            Act::Switch(state) => front = state,
                            Act::Offer => (front, offered) = (Initialised, true),
                            Act::Connect(_) => front = Connected,
                            Act::Nothing => {}
                            act => panic!("{own} and {back} came to {act:?}"),
                        },
                    }
                }
                assert!(offered && hs.is_connected(), "{own} and {back}, {turns:#b}: {front} and {linux_is}");
            }
        }
    }

    #[test]
    fn a_new_size_is_noticed() {
        let info = Info { sectors: 4096, ..INFO };
        assert_eq!(connected().next(Connected, &keys().with("sectors", 4096)), Act::Changed(info));
    }

    #[test]
    fn a_backend_that_comes_back_gets_a_fresh_ring() {
        let mut killed = connected();
        assert_eq!(killed.next(InitWait, &keys()), Act::Offer);
        assert_eq!(killed.next(Connected, &keys()), Act::Connect(INFO));
        let mut ended = connected();
        assert_eq!(ended.next(Closed, &keys()), Act::Lost);
        assert_eq!(ended.next(Closed, &keys()), Act::Nothing);
        assert_eq!(ended.next(InitWait, &keys()), Act::Offer);
    }

    #[test]
    fn a_backend_that_closes_is_let_go() {
        let mut hs = connected();
        assert_eq!(hs.next(Closing, &keys()), Act::Close(None));
        assert_eq!(hs.next(InitWait, &keys()), Act::Nothing);
        assert!(hs.is_closed());
    }

    #[test]
    fn wrong_properties_close_and_name_the_key() {
        for (key, value) in [
            ("sectors", "x"),
            ("sectors", "18446744073709551615"),
            ("sector-size", "0"),
            ("sector-size", "768"),
            ("sector-size", "1048576"),
            ("info", "-1"),
        ] {
            let mut hs = Handshake::new(Initialising);
            hs.next(InitWait, &keys());
            let Act::Close(Some(error)) = hs.next(Connected, &keys().with(key, value)) else {
                panic!("{key}")
            };
            assert!(format!("{error}").starts_with(&format!("/b/{key}: found \"{value}\"")), "{error}");
        }
    }

    #[test]
    fn the_ring_is_as_large_as_both_like() {
        let offers = |order: &str| Keys::new("/b").with("max-ring-page-order", order);
        assert_eq!(ring_page_order(&offers("4"), 2), Ok(2));
        assert_eq!(ring_page_order(&offers("1"), 2), Ok(1));
        assert_eq!(ring_page_order(&Keys::new("/b"), 2), Ok(0));
        assert_eq!(ring_page_order(&Keys::new("/b").with("max-ring-pages", 8), 4), Ok(3));
        let two = ring_keys(&[GrantRef(8), GrantRef(9)], EventPort(5));
        assert_eq!((two.get("ring-page-order"), two.get("ring-ref1")), (Some("1"), Some("9")));
    }
}
