//! Converts a guest's flags and extras to the bridge's offload metadata, and back.
//!
//! `NETTXF_csum_blank` does not carry the checksum's position: it is found in the frame's private head, which the
//! guest cannot change any more.

use crate::assemble::Packet;
use crate::rx::FrameInfo;
use bridge::headers::Headers;
use bridge::partial_checksum::mark_blank;
use bridge::{Frame, Gso, GsoKind, Malformed, Offload};
use ring_abi::netif::extra::{GSO_TCPV4, GSO_TCPV6};
use ring_abi::netif::{RxFlags, TxFlags};

/// Bytes of a TCP header without options.
const TCP_HEADER: usize = 20;

/// Sets the offload metadata of `frame`, whose head is filled and whose length is the packet's.
///
/// # Errors
/// [`Malformed`] where the head has no headers that fit the packet's flags and extras: the packet is to be dropped.
#[inline]
pub(crate) fn from_guest(packet: &Packet, frame: &mut Frame) -> Result<(), Malformed> {
    let validated = packet.flags().intersects(TxFlags::DATA_VALIDATED | TxFlags::CSUM_BLANK);
    frame.set_offload(Offload { csum: None, verified: validated, gso: None });
    match packet.gso() {
        None if !packet.flags().contains(TxFlags::CSUM_BLANK) => Ok(()),
        gso => set_work(gso, frame),
    }
}

fn set_work(gso: Option<(u8, u16)>, frame: &mut Frame) -> Result<(), Malformed> {
    let gso = match gso {
        None => None,
        Some((kind, size)) => Some(segmentation(frame.head(), kind, size)?),
    };
    // Segmentation computes new checksums, so that a finished one is replaced by a partial one (as in Linux).
    mark_blank(frame)?;
    frame.set_offload(Offload { csum: frame.offload().csum, verified: true, gso });
    Ok(())
}

fn segmentation(head: &[u8], kind: u8, size: u16) -> Result<Gso, Malformed> {
    const TCP: u8 = 6;
    let headers = Headers::parse(head).ok_or(Malformed)?;
    let kind = match (kind, headers.ip) {
        (GSO_TCPV4, bridge::headers::Ip::V4) => GsoKind::TcpV4,
        (GSO_TCPV6, bridge::headers::Ip::V6) => GsoKind::TcpV6,
        _ => return Err(Malformed),
    };
    let length = usize::from(head.get(headers.l4 + 12).ok_or(Malformed)? >> 4) * 4;
    let whole = length >= TCP_HEADER && headers.l4 + length <= head.len();
    if headers.protocol != TCP || !whole {
        return Err(Malformed);
    }
    Ok(Gso { kind, size })
}

/// What the receive ring has to carry of `frame`.
#[inline]
pub(crate) fn to_guest(frame: &Frame) -> FrameInfo {
    let offload = frame.offload();
    let mut flags = RxFlags::empty();
    flags.set(RxFlags::CSUM_BLANK, offload.csum.is_some());
    flags.set(RxFlags::DATA_VALIDATED, offload.csum.is_some() || offload.verified);
    let gso = offload.gso.and_then(|gso| match gso.kind {
        GsoKind::TcpV4 => Some((GSO_TCPV4, gso.size)),
        GsoKind::TcpV6 => Some((GSO_TCPV6, gso.size)),
        // The port's capabilities say that the bridge is to cut these.
        GsoKind::Udp => None,
    });
    FrameInfo { len: frame.len(), flags, gso }
}
