//! Ethernet addresses, as numbers to be compared and hashed.

use std::ops::RangeInclusive;

const OCCUPIED: u64 = 1 << 63;
const GROUP: u64 = 1 << 40;
const BROADCAST: u64 = (1 << 48) - 1;
/// 01-80-C2-00-00-00 to -0F: for bridges themselves, never forwarded (802.1D, table 7-10).
const RESERVED: RangeInclusive<u64> = 0x0180_c200_0000..=0x0180_c200_000f;

/// An Ethernet address, its first byte in bits 40 to 47.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Mac(u64);

impl Mac {
    /// Nobody's address.
    pub const ZERO: Mac = Mac(0);

    /// The address in these bytes, as on the wire.
    pub const fn new(bytes: [u8; 6]) -> Mac {
        let [a, b, c, d, e, f] = bytes;
        Mac(u64::from_be_bytes([0, 0, a, b, c, d, e, f]))
    }

    /// Destination and source of a frame with this Ethernet header.
    #[inline]
    pub fn pair(header: &[u8; 14]) -> (Mac, Mac) {
        let [a, b, c, d, e, f, g, h, i, j, k, l, ..] = *header;
        let to = u64::from_be_bytes([a, b, c, d, e, f, g, h]) >> 16;
        let from = u64::from_be_bytes([e, f, g, h, i, j, k, l]) & BROADCAST;
        (Mac(to), Mac(from))
    }

    /// Its bytes, as on the wire.
    pub fn bytes(self) -> [u8; 6] {
        let [_, _, a, b, c, d, e, f] = self.0.to_be_bytes();
        [a, b, c, d, e, f]
    }

    /// Whether it names a group (multicast or broadcast) rather than one station.
    #[inline]
    pub fn is_group(self) -> bool {
        self.0 & GROUP != 0
    }

    /// Whether bridges keep frames for it to themselves.
    #[inline]
    pub fn is_reserved(self) -> bool {
        RESERVED.contains(&self.0)
    }
}

impl std::fmt::Display for Mac {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let [a, b, c, d, e, g] = self.bytes();
        write!(f, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}")
    }
}

impl std::fmt::Debug for Mac {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        std::fmt::Display::fmt(self, f)
    }
}

/// An address within a VLAN (0 for none): what is learned.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Station(u64);

impl Station {
    /// `mac` in VLAN `vlan` (its low 12 bits).
    #[inline]
    pub const fn new(mac: Mac, vlan: u16) -> Station {
        Station(OCCUPIED | ((vlan as u64 & 0xfff) << 48) | mac.0)
    }

    /// Never zero.
    #[inline]
    pub(crate) fn key(self) -> u64 {
        self.0
    }

    /// The station with that key.
    pub(crate) fn from_key(key: u64) -> Station {
        Station(key)
    }

    /// Its address.
    pub fn mac(self) -> Mac {
        Mac(self.0 & BROADCAST)
    }
}
