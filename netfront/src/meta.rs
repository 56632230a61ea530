//! Offload metadata of a packet, from and to the flags and extras of its slots.

use crate::rx::Packet;
use ring_abi::netif::extra::{GSO_TCPV4, GSO_TCPV6};
use ring_abi::netif::{RxFlags, TxFlags};

/// A segmentation still to be done.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Gso {
    /// TCP over IPv6 if set, TCP over IPv4 if not.
    pub v6: bool,
    /// Bytes of TCP payload in each segment.
    pub size: u16,
}

/// Offload metadata of a packet: what is still to be done to it, and what is known of it.
///
/// The ring does not carry the checksum's position (`struct virtio_net_hdr` does): who fills in the checksum of a
/// received packet finds it in the packet's headers.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Meta {
    /// The transport checksum is still to be computed: its field may hold the pseudo-header's sum only. Set whenever
    /// `gso` is.
    pub csum_blank: bool,
    /// The checksum is known to be right.
    pub verified: bool,
    /// The packet is still to be cut into segments.
    pub gso: Option<Gso>,
}

impl Meta {
    /// Metadata of a packet with nothing left to do and nothing known.
    pub const NONE: Self = Self { csum_blank: false, verified: false, gso: None };
}

/// Flags and segmentation of a packet to be sent.
#[inline]
pub(crate) fn to_back(meta: &Meta) -> (TxFlags, Option<(u8, u16)>) {
    let mut flags = TxFlags::empty();
    flags.set(TxFlags::CSUM_BLANK, meta.csum_blank);
    flags.set(TxFlags::DATA_VALIDATED, meta.csum_blank || meta.verified);
    let gso = meta.gso.filter(|gso| gso.size > 0);
    (flags, gso.map(|gso| (if gso.v6 { GSO_TCPV6 } else { GSO_TCPV4 }, gso.size)))
}

/// Metadata of a received packet.
#[inline]
pub(crate) fn from_back(packet: &Packet) -> Meta {
    let csum_blank = packet.flags().contains(RxFlags::CSUM_BLANK) || packet.gso().is_some();
    Meta {
        csum_blank,
        verified: csum_blank || packet.flags().contains(RxFlags::DATA_VALIDATED),
        gso: packet.gso().map(|(kind, size)| Gso { v6: kind == GSO_TCPV6, size }),
    }
}
