//! What travels beside a packet, as `struct virtio_net_hdr` says it and so as a tap takes it.

use crate::csum::{self, Csum};
use crate::rx::Packet;
use ring_abi::netif::extra::{GSO_TCPV4, GSO_TCPV6};
use ring_abi::netif::{RxFlags, TxFlags};

/// A segmentation left undone.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Gso {
    /// TCP over IPv6, else over IPv4.
    pub v6: bool,
    /// Bytes of TCP payload in each segment.
    pub size: u16,
}

/// What is left to do for a packet, or known of it.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Meta {
    /// A checksum to be filled in; the pseudo-header's sum is there already.
    pub csum: Option<Csum>,
    /// The checksum is known to be right.
    pub verified: bool,
    /// To be cut into segments; comes with `csum`.
    pub gso: Option<Gso>,
}

impl Meta {
    /// A finished packet.
    pub const NONE: Self = Self { csum: None, verified: false, gso: None };
}

/// Flags and segmentation of a packet to be sent.
#[inline]
pub(crate) fn to_back(meta: &Meta) -> (TxFlags, Option<(u8, u16)>) {
    let mut flags = TxFlags::empty();
    flags.set(TxFlags::CSUM_BLANK, meta.csum.is_some());
    flags.set(TxFlags::DATA_VALIDATED, meta.csum.is_some() || meta.verified);
    let gso = meta.gso.filter(|gso| gso.size > 0);
    (flags, gso.map(|gso| (if gso.v6 { GSO_TCPV6 } else { GSO_TCPV4 }, gso.size)))
}

/// What is said of a packet received, `bytes` being its private copy. A blank checksum without a place for it is
/// passed over in silence, as Linux does.
#[inline]
pub(crate) fn from_back(packet: &Packet, bytes: &[u8]) -> Meta {
    let blank = packet.flags().contains(RxFlags::CSUM_BLANK);
    if !blank && packet.gso().is_none() {
        return Meta { verified: packet.flags().contains(RxFlags::DATA_VALIDATED), ..Meta::NONE };
    }
    let csum = csum::find(bytes);
    let gso = packet.gso().map(|(kind, size)| Gso { v6: kind == GSO_TCPV6, size });
    Meta { verified: csum.is_some(), gso: gso.filter(|_| csum.is_some()), csum }
}
