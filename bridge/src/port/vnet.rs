//! `struct virtio_net_hdr` (linux/virtio_net.h), in the machine's byte order, as is the default of taps and packet
//! sockets: 10 bytes before each frame that encode an [`Offload`].

use crate::{Csum, Frame, Gso, GsoKind, Offload};

/// Bytes of the header.
pub(super) const LEN: usize = 10;

const NEEDS_CSUM: u8 = 1;
const DATA_VALID: u8 = 2;
const GSO_NONE: u8 = 0;
const GSO_TCPV4: u8 = 1;
const GSO_TCPV6: u8 = 4;
/// `VIRTIO_NET_HDR_GSO_UDP_L4`.
const GSO_UDP: u8 = 5;
const GSO_ECN: u8 = 0x80;

/// Parses a header; `None` for a kind of segmentation that the switch does not support.
pub(super) fn parse(bytes: &[u8; LEN]) -> Option<Offload> {
    let [flags, kind, ..] = *bytes;
    let field = |at: usize| u16::from_ne_bytes([bytes[at], bytes[at + 1]]);
    let kind = match kind & !GSO_ECN {
        GSO_NONE => None,
        GSO_TCPV4 => Some(GsoKind::TcpV4),
        GSO_TCPV6 => Some(GsoKind::TcpV6),
        GSO_UDP => Some(GsoKind::Udp),
        _ => return None,
    };
    Some(Offload {
        csum: (flags & NEEDS_CSUM != 0).then(|| Csum { start: field(6), offset: field(8) }),
        verified: flags & (NEEDS_CSUM | DATA_VALID) != 0,
        gso: kind.map(|kind| Gso { kind, size: field(4) }),
    })
}

/// Makes the header of a frame.
pub(super) fn make(frame: &Frame) -> [u8; LEN] {
    let Offload { csum, verified, gso } = *frame.offload();
    let mut bytes = [0; LEN];
    let mut put = |at: usize, field: u16| bytes[at..at + 2].copy_from_slice(&field.to_ne_bytes());
    if let Some(csum) = csum {
        put(6, csum.start);
        put(8, csum.offset);
    }
    if let Some(gso) = gso {
        // `hdr_len` is a hint how many bytes to make linear.
        put(2, frame.head().len() as u16);
        put(4, gso.size);
    }
    bytes[0] = if csum.is_some() { NEEDS_CSUM } else { DATA_VALID * u8::from(verified) };
    bytes[1] = match gso.map(|gso| gso.kind) {
        None => GSO_NONE,
        Some(GsoKind::TcpV4) => GSO_TCPV4,
        Some(GsoKind::TcpV6) => GSO_TCPV6,
        Some(GsoKind::Udp) => GSO_UDP,
    };
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn made_header_is_parsed_to_the_same_offloads(start: u16, offset: u16, size: u16, bits in 0..8u8, kind in 0..3usize) {
            let kind = [GsoKind::TcpV4, GsoKind::TcpV6, GsoKind::Udp][kind];
            let csum = (bits & 1 != 0).then_some(Csum { start, offset });
            let verified = bits & 2 != 0 || csum.is_some();
            let gso = (bits & 4 != 0).then_some(Gso { kind, size });
            let mut frame = Frame::from_slice(&[0; 60]);
            frame.set_offload(Offload { csum, verified, gso });
            prop_assert_eq!(parse(&make(&frame)), Some(*frame.offload()));
        }
    }

    #[test]
    fn unsupported_segmentation_is_refused() {
        assert_eq!(parse(&[0, 3, 0, 0, 0, 0, 0, 0, 0, 0]), None);
    }
}
