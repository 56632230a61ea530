//! What the forwarding database says of a station, and how that came to be.

use super::{PortId, Station};

/// How an entry came to be, and what ends it: of each but the first two no other port can learn the station.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u8)]
pub enum Kind {
    /// Learned: it expires, and moves to where the station is seen.
    #[default]
    Learned,
    /// Given: it expires, and moves. Unlike a learned one it is in no limit.
    Dynamic,
    /// Given: it expires, and does not move.
    Sticky,
    /// Given: it neither expires nor moves.
    Static,
    /// The port's own address: it neither expires nor moves.
    Own,
}

impl Kind {
    /// Its name, as bridge(8) has it where that knows one.
    pub fn name(self) -> &'static str {
        match self {
            Kind::Learned => "learned",
            Kind::Dynamic => "dynamic",
            Kind::Sticky => "sticky",
            Kind::Static => "static",
            Kind::Own => "own",
        }
    }

    /// Whether no other port can learn the station.
    #[inline]
    pub fn stays(self) -> bool {
        self >= Kind::Sticky
    }

    #[inline]
    pub(super) fn expires(self) -> bool {
        self <= Kind::Sticky
    }
}

/// One entry of the table, for display.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Entry {
    /// The address.
    pub station: Station,
    /// The port at which it was last seen.
    pub port: PortId,
    /// Seconds since then; 0 where it does not expire.
    pub age_s: u32,
    /// How it came to be.
    pub kind: Kind,
}

/// An entry as the table has it, beside its key.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Value {
    pub(super) seen_s: u32,
    pub(super) port: u16,
    pub(super) kind: Kind,
}

impl Entry {
    pub(super) fn new(key: u64, value: Value, now_s: u32) -> Entry {
        let age_s = if value.kind.expires() { now_s.saturating_sub(value.seen_s) } else { 0 };
        Entry { station: Station::from_key(key), port: PortId(value.port), age_s, kind: value.kind }
    }
}

impl Value {
    #[inline]
    pub(super) fn has_expired(&self, age_s: u32, now_s: u32) -> bool {
        self.kind.expires() && now_s.saturating_sub(self.seen_s) >= age_s
    }
}
