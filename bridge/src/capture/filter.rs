//! Which frames are captured: by their headers, as far as those are in a frame's head.

use core::net::IpAddr;

use crate::fdb::Mac;
use crate::headers::{Ip, TCP, UDP, be16, ip_start};

/// Stream control transmission protocol, which has ports where TCP has them.
const SCTP: u8 = 132;
const ARP: u16 = 0x0806;
const ETH: usize = 14;

/// A station, by one of its addresses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CaptureHost {
    /// The source or destination of an Ethernet header.
    Mac(Mac),
    /// The source or destination of an IP header, or the sender or target of an ARP packet.
    Ip(IpAddr),
}

/// A condition for frames; all that is given must hold.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct CaptureFilter {
    /// From or to this station.
    pub host: Option<CaptureHost>,
    /// From or to this port of TCP, UDP or SCTP. Of a packet in fragments the first one has ports.
    pub port: Option<u16>,
    /// Of this type, of the frame or behind its VLAN tags.
    pub ether_type: Option<u16>,
}

impl CaptureFilter {
    /// Whether a frame with that head matches.
    pub fn matches(&self, head: &[u8]) -> bool {
        self.ether_type.is_none_or(|wanted| ether_types(head).any(|found| found == wanted))
            && self.host.is_none_or(|host| has_host(head, host))
            && self.port.is_none_or(|port| ports(head).is_some_and(|ports| ports.contains(&port)))
    }
}

/// The types of a frame: its own, and while that is a VLAN tag's the next one, of two tags at most.
fn ether_types(head: &[u8]) -> impl Iterator<Item = u16> {
    let mut at = Some(ETH - 2);
    std::iter::from_fn(move || {
        let here = at?;
        let found = be16(head, here)?;
        let is_tag = matches!(found, 0x8100 | 0x88a8);
        at = (is_tag && here < ETH + 4).then_some(here + 4);
        Some(found)
    })
}

/// Where the frame's packet begins, behind its VLAN tags, and its type.
fn packet(head: &[u8]) -> Option<(u16, usize)> {
    let types = ether_types(head).enumerate();
    types.last().map(|(tags, found)| (found, ETH + 4 * tags))
}

fn has_host(head: &[u8], host: CaptureHost) -> bool {
    match host {
        CaptureHost::Mac(mac) => {
            let header = head.first_chunk().map(Mac::pair);
            header.is_some_and(|(to, from)| to == mac || from == mac)
        }
        CaptureHost::Ip(IpAddr::V4(address)) => {
            let octets = address.octets();
            let [from, to] = match packet(head) {
                Some((ARP, at)) => [at + 14, at + 24],
                _ => match ip_start(head) {
                    Some((Ip::V4, at)) => [at + 12, at + 16],
                    _ => return false,
                },
            };
            [from, to].iter().any(|at| head.get(*at..*at + 4) == Some(&octets))
        }
        CaptureHost::Ip(IpAddr::V6(address)) => match ip_start(head) {
            Some((Ip::V6, at)) => {
                let octets = address.octets();
                [at + 8, at + 24].iter().any(|at| head.get(*at..*at + 16) == Some(&octets))
            }
            _ => false,
        },
    }
}

/// The source and destination ports, unless the frame is a later fragment of a packet.
fn ports(head: &[u8]) -> Option<[u16; 2]> {
    let (ip, at) = ip_start(head)?;
    let (protocol, l4) = match ip {
        Ip::V4 => {
            let is_first = be16(head, at + 6)? & 0x1fff == 0;
            is_first.then_some((*head.get(at + 9)?, at + usize::from(head[at] & 0xf) * 4))?
        }
        Ip::V6 => behind_extensions(head, *head.get(at + 6)?, at + 40)?,
    };
    let has_ports = matches!(protocol, TCP | UDP | SCTP);
    has_ports.then_some([be16(head, l4)?, be16(head, l4 + 2)?])
}

/// The header behind IPv6's hop-by-hop options, routing, fragment and destination options (RFC 8200, 4.1).
fn behind_extensions(head: &[u8], mut protocol: u8, mut at: usize) -> Option<(u8, usize)> {
    // Each has 8 bytes at least, so that the head's end bounds the loop.
    while let 0 | 43 | 44 | 60 = protocol {
        let is_fragment = protocol == 44;
        if is_fragment && be16(head, at + 2)? & 0xfff8 != 0 {
            return None;
        }
        let len = if is_fragment { 8 } else { (usize::from(*head.get(at + 1)?) + 1) * 8 };
        protocol = *head.get(at)?;
        at += len;
    }
    Some((protocol, at))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const FROM: [u8; 6] = [2, 0, 0, 0, 0, 1];
    const TO: [u8; 6] = [2, 0, 0, 0, 0, 2];

    /// A frame with these tags, that type and packet.
    fn frame(tags: usize, ether_type: u16, packet: &[u8]) -> Vec<u8> {
        let tags = [0x81, 0, 0, 5].repeat(tags);
        [&TO[..], &FROM, &tags, &ether_type.to_be_bytes(), packet].concat()
    }

    fn ipv4(fragment: u16, protocol: u8, l4: &[u8]) -> Vec<u8> {
        let mut header = vec![0x45, 0, 0, 28, 0, 0, 0, 0, 64, protocol, 0, 0];
        header[6..8].copy_from_slice(&fragment.to_be_bytes());
        header.extend([10, 0, 0, 1, 10, 0, 0, 2]);
        [&header, l4].concat()
    }

    fn ipv6(next: u8, rest: &[u8]) -> Vec<u8> {
        let mut packet = vec![0x60, 0, 0, 0, 0, 8, next, 64];
        packet.extend("fd00::1".parse::<core::net::Ipv6Addr>().unwrap().octets());
        packet.extend("fd00::2".parse::<core::net::Ipv6Addr>().unwrap().octets());
        packet.extend(rest);
        packet
    }

    fn host(text: &str) -> CaptureFilter {
        CaptureFilter { host: Some(CaptureHost::Ip(text.parse().unwrap())), ..CaptureFilter::default() }
    }

    fn port(port: u16) -> CaptureFilter {
        CaptureFilter { port: Some(port), ..CaptureFilter::default() }
    }

    const UDP_53: [u8; 8] = [0x30, 0x39, 0, 53, 0, 8, 0, 0];

    #[test]
    fn frames_are_matched_by_either_address() {
        let packet = frame(1, 0x0800, &ipv4(0, UDP, &UDP_53));
        assert!(host("10.0.0.1").matches(&packet) && host("10.0.0.2").matches(&packet));
        assert!(!host("10.0.0.3").matches(&packet) && !host("fd00::1").matches(&packet));
        let arp = [&[0, 1, 8, 0, 6, 4, 0, 1][..], &FROM, &[10, 0, 0, 1], &[0; 6], &[10, 0, 0, 9]].concat();
        let arp = frame(0, ARP, &arp);
        assert!(host("10.0.0.1").matches(&arp) && host("10.0.0.9").matches(&arp));
        assert!(host("fd00::2").matches(&frame(2, 0x86dd, &ipv6(UDP, &UDP_53))));
        let mac = |bytes| CaptureHost::Mac(Mac::new(bytes));
        let of = |host| CaptureFilter { host: Some(host), ..CaptureFilter::default() };
        assert!(of(mac(FROM)).matches(&arp) && of(mac(TO)).matches(&arp) && !of(mac([4; 6])).matches(&arp));
    }

    #[test]
    fn ports_are_those_of_first_fragments_and_behind_extensions() {
        assert!(port(53).matches(&frame(0, 0x0800, &ipv4(0, UDP, &UDP_53))));
        assert!(port(12345).matches(&frame(0, 0x0800, &ipv4(0x2000, TCP, &UDP_53))), "a first fragment");
        assert!(!port(53).matches(&frame(0, 0x0800, &ipv4(0x2005, UDP, &UDP_53))), "a later one");
        assert!(!port(53).matches(&frame(0, 0x0800, &ipv4(0, 1, &UDP_53))), "ICMP");
        let extensions = [&[44, 1][..], &[0; 14], &[UDP, 0, 0, 1, 0, 0, 0, 0], &UDP_53].concat();
        assert!(port(53).matches(&frame(0, 0x86dd, &ipv6(60, &extensions))));
        let later = [&[UDP, 0, 0, 8, 0, 0, 0, 0][..], &UDP_53].concat();
        assert!(!port(53).matches(&frame(0, 0x86dd, &ipv6(44, &later))));
    }

    #[test]
    fn types_are_the_tags_and_the_packets() {
        let tagged = frame(1, 0x0800, &ipv4(0, UDP, &UDP_53));
        let of = |ether_type| CaptureFilter { ether_type: Some(ether_type), ..CaptureFilter::default() };
        assert!(of(0x8100).matches(&tagged) && of(0x0800).matches(&tagged) && !of(0x86dd).matches(&tagged));
        let both = CaptureFilter { port: Some(54), ..of(0x0800) };
        assert!(!both.matches(&tagged), "all conditions hold");
    }

    proptest! {
        #[test]
        fn random_heads_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..128), kind in 0usize..4) {
            let mut bytes = bytes;
            if bytes.len() > 14 {
                bytes[12..14].copy_from_slice(&[[8, 0], [0x86, 0xdd], [8, 6], [0x81, 0]][kind]);
            }
            let filters = [host("10.0.0.1"), host("fd00::1"), port(53)];
            for filter in filters {
                filter.matches(&bytes);
            }
        }
    }
}
