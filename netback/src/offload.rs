//! From a guest's flags and extras to the bridge's offload metadata, and back.
//!
//! A guest says no more than "the checksum is blank": where it belongs is found in the private head, never in the
//! guest's memory.

use crate::assemble::Packet;
use crate::rx::Shape;
use bridge::headers::{Headers, Malformed, mark_blank};
use bridge::{Frame, Gso, GsoKind, Offload};
use ring_abi::netif::extra::{GSO_TCPV4, GSO_TCPV6};
use ring_abi::netif::{RxFlags, TxFlags};

/// Bytes of TCP's header without options.
const TCP_HEADER: usize = 20;

/// Says in `frame`, whose head is filled and whose length is the packet's, what the guest left undone.
///
/// # Errors
/// [`Malformed`] where the head does not bear it out: the packet is refused.
#[inline]
pub(crate) fn from_guest(packet: &Packet, frame: &mut Frame) -> Result<(), Malformed> {
    let validated = packet.flags().intersects(TxFlags::DATA_VALIDATED | TxFlags::CSUM_BLANK);
    frame.set_offload(Offload { csum: None, verified: validated, gso: None });
    match packet.gso() {
        None if !packet.flags().contains(TxFlags::CSUM_BLANK) => Ok(()),
        gso => work(gso, frame),
    }
}

fn work(gso: Option<(u8, u16)>, frame: &mut Frame) -> Result<(), Malformed> {
    let gso = match gso {
        None => None,
        Some((kind, size)) => Some(segmentation(frame.head(), kind, size)?),
    };
    // Cutting makes checksums anew, so that a guest's finished one is of no use (as in Linux).
    mark_blank(frame)?;
    let csum = frame.offload().csum.ok_or(Malformed)?;
    if usize::from(csum.start) + usize::from(csum.offset) + 2 > frame.head().len() {
        return Err(Malformed);
    }
    frame.set_offload(Offload { csum: Some(csum), verified: true, gso });
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

/// What the guest that receives `frame` is told.
#[inline]
pub(crate) fn to_guest(frame: &Frame) -> Shape {
    let offload = frame.offload();
    let mut flags = RxFlags::empty();
    flags.set(RxFlags::CSUM_BLANK, offload.csum.is_some());
    flags.set(RxFlags::DATA_VALIDATED, offload.csum.is_some() || offload.verified);
    let gso = offload.gso.map(|gso| match gso.kind {
        GsoKind::TcpV4 => (GSO_TCPV4, gso.size),
        GsoKind::TcpV6 => (GSO_TCPV6, gso.size),
    });
    Shape { len: frame.len(), flags, gso }
}
