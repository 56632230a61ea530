//! Ethernet addresses as numbers, for comparing and hashing.

use std::ops::RangeInclusive;

const OCCUPIED: u64 = 1 << 63;
const GROUP: u64 = 1 << 40;
const BROADCAST: u64 = (1 << 48) - 1;
/// 01-80-C2-00-00-01 to -0F: addressed to bridges, never forwarded (802.1D, table 7-10). The first of that table, -00, is the
/// spanning tree protocol's, whose frames a bridge without that protocol forwards, as Linux's does: else the bridges at two
/// of its ports could not see a loop through it.
const RESERVED: RangeInclusive<u64> = 0x0180_c200_0001..=0x0180_c200_000f;

/// An Ethernet address, its first byte in bits 40 to 47.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Mac(u64);

impl Mac {
    /// The zero address, which no station has.
    pub const ZERO: Mac = Mac(0);

    /// Makes an address of its bytes on the wire.
    pub const fn new(bytes: [u8; 6]) -> Mac {
        let [a, b, c, d, e, f] = bytes;
        Mac(u64::from_be_bytes([0, 0, a, b, c, d, e, f]))
    }

    /// The destination and source addresses of an Ethernet header.
    #[inline]
    pub fn pair(header: &[u8; 14]) -> (Mac, Mac) {
        let [a, b, c, d, e, f, g, h, i, j, k, l, ..] = *header;
        let to = u64::from_be_bytes([a, b, c, d, e, f, g, h]) >> 16;
        let from = u64::from_be_bytes([e, f, g, h, i, j, k, l]) & BROADCAST;
        (Mac(to), Mac(from))
    }

    /// The address's bytes on the wire.
    pub fn bytes(self) -> [u8; 6] {
        let [_, _, a, b, c, d, e, f] = self.0.to_be_bytes();
        [a, b, c, d, e, f]
    }

    /// Whether this is a group address (multicast or broadcast) rather than one station's.
    #[inline]
    pub fn is_group(self) -> bool {
        self.0 & GROUP != 0
    }

    /// Whether this is the broadcast address.
    #[inline]
    pub fn is_broadcast(self) -> bool {
        self.0 == BROADCAST
    }

    /// Whether a station has this address: it is no group's and not zero.
    #[inline]
    pub fn is_station(self) -> bool {
        !self.is_group() && self != Mac::ZERO
    }

    /// Whether bridges do not forward frames to this address, unless they are told to.
    #[inline]
    pub fn is_reserved(self) -> bool {
        RESERVED.contains(&self.0)
    }

    /// Whether frames of the spanning tree protocol are sent to this: of 802.1D, or of the variant for each VLAN that Cisco's switches speak.
    pub(crate) fn is_bpdus(self) -> bool {
        const STP: u64 = 0x0180_c200_0000;
        const PVST: u64 = 0x0100_0ccc_cccd;
        matches!(self.0, STP | PVST)
    }

    /// Which of the link-local groups 01-80-C2-00-00-0X this is, if it is one.
    pub(crate) fn link_local_group(self) -> u8 {
        self.0 as u8 & 15
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

/// An address in a VLAN (0 for none), as the forwarding database learns it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Station(u64);

impl Station {
    /// Makes a station of an address and a VLAN (the low 12 bits).
    #[inline]
    pub const fn new(mac: Mac, vlan: u16) -> Station {
        Station(OCCUPIED | ((vlan as u64 & 0xfff) << 48) | mac.0)
    }

    /// The station as a number, never zero.
    #[inline]
    pub(crate) fn key(self) -> u64 {
        self.0
    }

    /// The station with this [`Station::key`].
    pub(crate) fn from_key(key: u64) -> Station {
        Station(key)
    }

    /// The VLAN; 0 for none.
    pub fn vlan(self) -> u16 {
        (self.0 >> 48) as u16 & 0xfff
    }

    /// The station's address.
    pub fn mac(self) -> Mac {
        Mac(self.0 & BROADCAST)
    }
}
