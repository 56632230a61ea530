//! Parses a frame's headers in its private head, as far as offloads need them.

use crate::{Csum, checksum::Sum};

const ETH: usize = 14;
const TAG: usize = 4;
pub(crate) const TCP: u8 = 6;
pub(crate) const UDP: u8 = 17;
/// The offset of the checksum in a UDP header, in bytes.
pub(crate) const UDP_OFFSET: u16 = 6;

/// The version of the internet protocol.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ip {
    /// IPv4.
    V4,
    /// IPv6.
    V6,
}

/// The offsets of an IP packet's headers, in bytes from the frame's start.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Headers {
    /// The version.
    pub ip: Ip,
    /// The IP header.
    pub l3: usize,
    /// The header after the IP header with its options or extensions.
    pub l4: usize,
    /// The protocol number of the header at `l4`.
    pub protocol: u8,
}

impl Headers {
    /// Finds the headers of an IP packet, behind up to two VLAN tags. The whole IP header, with options or extension
    /// headers, must be in `head`. `None` for other packets and for IP fragments.
    pub fn parse(head: &[u8]) -> Option<Headers> {
        let (ip, l3) = ip_start(head)?;
        match ip {
            Ip::V4 => parse_v4(head, l3),
            Ip::V6 => parse_v6(head, l3),
        }
    }

    /// Whether the IP header follows the Ethernet header directly.
    pub fn is_untagged(&self) -> bool {
        self.l3 == ETH
    }

    /// The checksum of this packet's TCP or UDP header.
    pub fn csum(&self) -> Option<Csum> {
        let offset = match self.protocol {
            TCP => 16,
            UDP => UDP_OFFSET,
            _ => return None,
        };
        Some(Csum { start: self.l4 as u16, offset })
    }

    /// The packet's source and destination addresses.
    pub(crate) fn addresses<'a>(&self, head: &'a [u8]) -> Option<&'a [u8]> {
        match self.ip {
            Ip::V4 => head.get(self.l3 + 12..self.l3 + 20),
            Ip::V6 => head.get(self.l3 + 8..self.l3 + 40),
        }
    }

    /// The sum of the pseudo-header for `l4_len` bytes from `l4` on. `head` has the addresses.
    pub(crate) fn pseudo(&self, head: &[u8], l4_len: usize) -> Option<Sum> {
        let mut sum = Sum::default();
        sum.add(self.addresses(head)?);
        sum.add(&(l4_len as u32).to_be_bytes());
        sum.add(&[0, self.protocol]);
        Some(sum)
    }
}

/// The version and offset of the IP header, if the frame has one.
pub(crate) fn ip_start(head: &[u8]) -> Option<(Ip, usize)> {
    let mut l3 = ETH;
    for _ in 0..3 {
        match (*head.get(l3 - 2)?, *head.get(l3 - 1)?) {
            (0x81, 0x00) | (0x88, 0xa8) => l3 += TAG,
            (0x08, 0x00) => return Some((Ip::V4, l3)),
            (0x86, 0xdd) => return Some((Ip::V6, l3)),
            _ => return None,
        }
    }
    None
}

/// The number of two bytes at an offset, if they are there.
pub(crate) fn be16(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_be_bytes(*bytes.get(at..)?.first_chunk()?))
}

fn parse_v4(head: &[u8], l3: usize) -> Option<Headers> {
    let header = head.get(l3..l3 + 20)?;
    let l4 = l3 + usize::from(header[0] & 0xf) * 4;
    let fragment = u16::from_be_bytes([header[6], header[7]]) & 0x3fff;
    let whole = header[0] >> 4 == 4 && l4 >= l3 + 20 && l4 <= head.len() && fragment == 0;
    whole.then_some(Headers { ip: Ip::V4, l3, l4, protocol: header[9] })
}

fn parse_v6(head: &[u8], l3: usize) -> Option<Headers> {
    let header = head.get(l3..l3 + 40)?;
    if header[0] >> 4 != 6 {
        return None;
    }
    let mut protocol = header[6];
    let mut l4 = l3 + 40;
    // Each extension has at least 8 bytes, so the head's end bounds the loop.
    while let 0 | 43 | 60 = protocol {
        let extension = head.get(l4..l4 + 2)?;
        protocol = extension[0];
        l4 += (usize::from(extension[1]) + 1) * 8;
    }
    (l4 <= head.len()).then_some(Headers { ip: Ip::V6, l3, l4, protocol })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn random_bytes_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..140), v6: bool) {
            let mut bytes = bytes;
            if bytes.len() > 14 {
                bytes[12..14].copy_from_slice(if v6 { &[0x86, 0xdd] } else { &[8, 0] });
                bytes[14] = if v6 { 0x60 } else { 0x45 };
            }
            if let Some(headers) = Headers::parse(&bytes) {
                prop_assert!(headers.l4 <= bytes.len());
            }
        }
    }

    #[test]
    fn headers_behind_tags_and_extensions_are_found() {
        let mut tagged = vec![0; 12];
        tagged.extend([0x88, 0xa8, 0, 5, 0x81, 0, 0, 6, 0x08, 0x00, 0x46]);
        tagged.resize(80, 0);
        tagged[22 + 9] = UDP;
        let headers = Headers::parse(&tagged).unwrap();
        assert_eq!((headers.l3, headers.l4), (22, 46));
        assert_eq!(headers.csum(), Some(Csum { start: 46, offset: 6 }));
        let mut extended = vec![0; 12];
        extended.extend([0x86, 0xdd, 0x60, 0, 0, 0, 0, 28, 0]);
        extended.resize(54, 0);
        extended.extend([TCP, 0, 0, 0, 0, 0, 0, 0]);
        extended.resize(90, 0);
        let headers = Headers::parse(&extended).unwrap();
        assert_eq!((headers.ip, headers.l4, headers.protocol), (Ip::V6, 62, TCP));
    }

    #[test]
    fn ip_fragment_has_no_headers() {
        let mut bytes = vec![0; 12];
        bytes.extend([8, 0, 0x45, 0, 0, 40, 0, 0, 0x20, 0]);
        bytes.resize(60, 0);
        assert_eq!(Headers::parse(&bytes), None);
    }
}
