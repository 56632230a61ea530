//! Where a packet's transport checksum is: what `VIRTIO_NET_HDR_F_NEEDS_CSUM` wants to know and `csum_blank` does not
//! say. Looks at private bytes only, and survives any.

/// A checksum to be filled in: of the bytes from `start` on, at `start + offset`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Csum {
    /// Bytes from the packet's start.
    pub start: u16,
    /// Bytes from `start`.
    pub offset: u16,
}

/// Headers and tags followed before giving up.
const MOST: usize = 8;
const TCP: u8 = 6;
const UDP: u8 = 17;

/// Finds the checksum of TCP or UDP, behind VLAN tags, IPv4 options and IPv6 extension headers.
pub fn find(packet: &[u8]) -> Option<Csum> {
    let (start, protocol) = transport(packet)?;
    let offset = match protocol {
        TCP => 16,
        UDP => 6,
        _ => return None,
    };
    (start + usize::from(offset) + 2 <= packet.len()).then_some(Csum { start: start as u16, offset })
}

fn transport(packet: &[u8]) -> Option<(usize, u8)> {
    let mut at = 12;
    for _ in 0..MOST {
        match be16(packet, at)? {
            0x8100 | 0x88a8 => at += 4,
            0x0800 => return ipv4(packet, at + 2),
            0x86dd => return ipv6(packet, at + 2),
            _ => return None,
        }
    }
    None
}

fn ipv4(packet: &[u8], network: usize) -> Option<(usize, u8)> {
    let first = *packet.get(network)?;
    let length = usize::from(first & 15) * 4;
    // A fragment has no transport header, or not all that it sums.
    let fragment = be16(packet, network + 6)? & 0x3fff != 0;
    let whole = first >> 4 == 4 && length >= 20 && !fragment;
    whole.then_some((network + length, *packet.get(network + 9)?))
}

fn ipv6(packet: &[u8], network: usize) -> Option<(usize, u8)> {
    if packet.get(network)? >> 4 != 6 {
        return None;
    }
    let (mut protocol, mut at) = (*packet.get(network + 6)?, network + 40);
    for _ in 0..MOST {
        if !matches!(protocol, 0 | 43 | 60) {
            return Some((at, protocol));
        }
        let length = usize::from(*packet.get(at + 1)?) * 8 + 8;
        protocol = *packet.get(at)?;
        at += length;
    }
    None
}

fn be16(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_be_bytes(bytes.get(at..at + 2)?.try_into().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::vec;
    use alloc::vec::Vec;

    fn packet(header: &[u8], len: usize) -> Vec<u8> {
        let mut packet = vec![0; 12];
        packet.extend_from_slice(header);
        packet.resize(len, 0);
        packet
    }

    #[test]
    fn finds_it_behind_tags_options_and_extensions() {
        let mut v4 = packet(&[0x81, 0, 0, 5, 8, 0, 0x46], 70);
        v4[18 + 9] = UDP;
        assert_eq!(find(&v4), Some(Csum { start: 42, offset: 6 }));
        let mut v6 = packet(&[0x86, 0xdd, 0x60, 0, 0, 0, 0, 0, 60], 90);
        v6[54] = TCP;
        assert_eq!(find(&v6), Some(Csum { start: 62, offset: 16 }));
    }

    #[test]
    fn fragments_other_protocols_and_stumps_have_none() {
        let mut v4 = packet(&[8, 0, 0x45], 60);
        v4[14 + 9] = TCP;
        assert!(find(&v4).is_some());
        assert!((0..52).all(|len| find(&v4[..len]).is_none()));
        v4[14 + 6] = 0x20;
        assert_eq!(find(&v4), None);
        assert_eq!(find(&packet(&[8, 6], 60)), None);
    }
}
