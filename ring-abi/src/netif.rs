//! Network interface: `io/netif.h`. The transmit ring ([`Tx`]) and the receive ring ([`Rx`]).
//!
//! A slot of either ring carries a request or response or, where the one before it says so, an extra
//! ([`extra::Extra`]): what a slot means is known only to who reads the whole packet, so that the types here
//! stay bytes and convert on demand.

pub mod ctrl;
pub mod extra;
pub mod hash;
pub mod key;
mod mac;

pub use mac::{Mac, NotAMac};

use crate::GrantRef;
use crate::ring::Protocol;
use crate::shm::Slot;
use bitflags::bitflags;

/// Slots that every backend must accept for one packet: `XEN_NETIF_NR_SLOTS_MIN` (netif.h:32).
pub const SLOTS_MIN: usize = 18;
/// More slots than this in one packet is an attack (`XEN_NETBK_LEGACY_SLOTS_MAX` and `fatal_skb_slots`).
pub const SLOTS_FATAL: usize = 20;
/// Most bytes of one packet: `XEN_NETIF_MAX_TX_SIZE` (netif.h:973).
pub const MAX_TX_SIZE: usize = 0xffff;
/// Bytes of an Ethernet header, and so of the shortest packet: Linux's `ETH_HLEN`.
pub const ETH_HLEN: usize = 14;
/// Smallest [`key::MTU`] in bytes: what every IPv4 link must carry (RFC 791, 3.2), Linux's `ETH_MIN_MTU`.
pub const MTU_MIN: u32 = 68;
/// Largest [`key::MTU`] in bytes: the longest packet without its Ethernet header, as in Linux's netfront
/// (`XEN_NETIF_MAX_TX_SIZE - ETH_HLEN`).
pub const MTU_MAX: u32 = (MAX_TX_SIZE - ETH_HLEN) as u32;
/// The range of [`key::MTU`] as error texts give it: [`MTU_MIN`] to [`MTU_MAX`].
pub const MTU_RANGE: &str = "68 to 65521";
/// [`key::MTU`] in bytes where the key is absent: Ethernet's own (RFC 894), Linux's `ETH_DATA_LEN`.
pub const MTU_DEFAULT: u32 = 1500;

bitflags! {
    /// `NETTXF_*` (netif.h:958).
    #[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
    pub struct TxFlags: u16 {
        /// The transport checksum holds only the pseudo-header's part.
        const CSUM_BLANK = 1;
        /// The checksum is right, or need not be checked.
        const DATA_VALIDATED = 2;
        /// The packet continues in the next slot.
        const MORE_DATA = 4;
        /// The next slot is an extra.
        const EXTRA_INFO = 8;
        /// Undefined bits are kept.
        const _ = !0;
    }

    /// `NETRXF_*` (netif.h:1041).
    #[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
    pub struct RxFlags: u16 {
        /// The checksum was checked.
        const DATA_VALIDATED = 1;
        /// The transport checksum holds only the pseudo-header's part.
        const CSUM_BLANK = 2;
        /// The packet continues in the next slot.
        const MORE_DATA = 4;
        /// The next slot is an extra.
        const EXTRA_INFO = 8;
        /// Undefined bits are kept.
        const _ = !0;
    }
}

/// `NETIF_RSP_*` (netif.h:1075); a receive response's is the bytes received instead, where not negative.
#[derive(Clone, Copy, PartialEq, Eq, Debug, PartialOrd, Ord)]
#[repr(transparent)]
pub struct Status(pub i16);

impl Status {
    /// The packet was dropped.
    pub const DROPPED: Self = Self(-2);
    /// The request was wrong.
    pub const ERROR: Self = Self(-1);
    /// Done.
    pub const OKAY: Self = Self(0);
    /// No response: used for extras.
    pub const NULL: Self = Self(1);
}

/// A transmit ring's request slot: `struct netif_tx_request` (netif.h:974), or an extra.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(transparent)]
pub struct TxSlot(pub [u32; 3]);

/// `struct netif_tx_request` (netif.h:974), 12 bytes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct TxRequest {
    /// The granted page.
    pub gref: GrantRef,
    /// First byte in the page.
    pub offset: u16,
    /// What follows, and what is known of checksums.
    pub flags: TxFlags,
    /// Echoed in the response.
    pub id: u16,
    /// Bytes: of the whole packet in its first slot, of the slot itself in the others.
    pub size: u16,
}

impl TxSlot {
    /// The slot as a request.
    #[inline]
    pub fn request(self) -> TxRequest {
        let [gref, second, third] = self.0;
        TxRequest {
            gref: GrantRef(gref),
            offset: second as u16,
            flags: TxFlags::from_bits_retain((second >> 16) as u16),
            id: third as u16,
            size: (third >> 16) as u16,
        }
    }

    /// The slot as an extra.
    #[inline]
    pub fn extra(self) -> extra::Extra {
        extra::Extra::from_words([self.0[0], self.0[1]])
    }
}

impl From<TxRequest> for TxSlot {
    #[inline]
    fn from(r: TxRequest) -> Self {
        let second = u32::from(r.offset) | u32::from(r.flags.bits()) << 16;
        Self([r.gref.0, second, u32::from(r.id) | u32::from(r.size) << 16])
    }
}

impl From<extra::Extra> for TxSlot {
    #[inline]
    fn from(extra: extra::Extra) -> Self {
        let [first, second] = extra.to_words();
        Self([first, second, 0])
    }
}

/// `struct netif_tx_response` (netif.h:1027), 4 bytes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct TxResponse {
    /// Copied from the request.
    pub id: u16,
    /// How it went; [`Status::NULL`] for an extra.
    pub status: Status,
}

/// The transmit ring: front to back.
#[derive(Clone, Copy, Debug)]
pub enum Tx {}

impl Protocol for Tx {
    const NAME: &'static str = "netif tx";
    const SLOT: usize = 12;
    type Request = TxSlot;
    type Response = TxResponse;

    #[inline]
    fn read_request(slot: Slot<'_>) -> TxSlot {
        TxSlot([slot.load32(0), slot.load32(4), slot.load32(8)])
    }

    #[inline]
    fn write_request(slot: Slot<'_>, r: &TxSlot) {
        slot.store32(0, r.0[0]);
        slot.store32(4, r.0[1]);
        slot.store32(8, r.0[2]);
    }

    #[inline]
    fn read_response(slot: Slot<'_>) -> TxResponse {
        let word = slot.load32(0);
        TxResponse { id: word as u16, status: Status((word >> 16) as i16) }
    }

    #[inline]
    fn write_response(slot: Slot<'_>, r: &TxResponse) {
        slot.store32(0, u32::from(r.id) | u32::from(r.status.0 as u16) << 16);
    }
}

/// `struct netif_rx_request` (netif.h:1033), 8 bytes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct RxRequest {
    /// Echoed in the response, which takes this request's slot.
    pub id: u16,
    /// An empty granted page.
    pub gref: GrantRef,
}

/// A receive ring's response slot: `struct netif_rx_response` (netif.h:1060), or an extra.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(transparent)]
pub struct RxSlot(pub [u32; 2]);

/// `struct netif_rx_response` (netif.h:1060), 8 bytes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct RxResponse {
    /// Copied from the request.
    pub id: u16,
    /// First byte in the page.
    pub offset: u16,
    /// What follows, and what is known of checksums.
    pub flags: RxFlags,
    /// Bytes in this page, or a negative [`Status`].
    pub status: i16,
}

impl RxSlot {
    /// The slot as a response.
    #[inline]
    pub fn response(self) -> RxResponse {
        let [first, second] = self.0;
        RxResponse {
            id: first as u16,
            offset: (first >> 16) as u16,
            flags: RxFlags::from_bits_retain(second as u16),
            status: (second >> 16) as i16,
        }
    }

    /// The slot as an extra.
    #[inline]
    pub fn extra(self) -> extra::Extra {
        extra::Extra::from_words(self.0)
    }
}

impl From<RxResponse> for RxSlot {
    #[inline]
    fn from(r: RxResponse) -> Self {
        let second = u32::from(r.flags.bits()) | u32::from(r.status as u16) << 16;
        Self([u32::from(r.id) | u32::from(r.offset) << 16, second])
    }
}

impl From<extra::Extra> for RxSlot {
    #[inline]
    fn from(extra: extra::Extra) -> Self {
        Self(extra.to_words())
    }
}

/// The receive ring: the frontend posts empty pages, the backend fills them.
#[derive(Clone, Copy, Debug)]
pub enum Rx {}

impl Protocol for Rx {
    const NAME: &'static str = "netif rx";
    const SLOT: usize = 8;
    type Request = RxRequest;
    type Response = RxSlot;

    #[inline]
    fn read_request(slot: Slot<'_>) -> RxRequest {
        RxRequest { id: slot.load32(0) as u16, gref: GrantRef(slot.load32(4)) }
    }

    #[inline]
    fn write_request(slot: Slot<'_>, r: &RxRequest) {
        slot.store32(0, r.id.into());
        slot.store32(4, r.gref.0);
    }

    #[inline]
    fn read_response(slot: Slot<'_>) -> RxSlot {
        RxSlot([slot.load32(0), slot.load32(4)])
    }

    #[inline]
    fn write_response(slot: Slot<'_>, r: &RxSlot) {
        slot.store32(0, r.0[0]);
        slot.store32(4, r.0[1]);
    }
}

#[cfg(test)]
mod tests {
    extern crate std;

    use super::*;

    #[test]
    fn mtu_range_text_agrees_with_the_bounds() {
        assert_eq!(MTU_RANGE, std::format!("{MTU_MIN} to {MTU_MAX}"));
    }
}
