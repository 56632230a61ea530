//! Frames by which a guest's port is announced to what is beyond the bridge: whoever has last seen the guest elsewhere, or nowhere, sends
//! to it here from now on, without waiting for the guest to say something.
//!
//! A reverse ARP request, which says nothing of IP addresses, as QEMU announces a guest after a migration; and for the single addresses
//! that the port may send from a gratuitous ARP request (RFC 5227, 3) and an unsolicited neighbour advertisement (RFC 4861, 7.2.6).

use core::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use crate::{Addresses, Frame, checksum::Sum, fdb::Mac};

/// The shortest frame without its check sequence.
const SHORTEST: usize = 60;
const BROADCAST: [u8; 6] = [0xff; 6];
/// All nodes of the link (RFC 4291, 2.7.1), and the address of Ethernet that they hear (RFC 2464, 7).
const ALL_NODES: Ipv6Addr = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 1);
const ALL_NODES_MAC: [u8; 6] = [0x33, 0x33, 0, 0, 0, 1];

const ARP: [u8; 2] = [0x08, 0x06];
const RARP: [u8; 2] = [0x80, 0x35];
const IPV6: [u8; 2] = [0x86, 0xdd];
/// Ethernet and IPv4, with addresses of 6 and 4 bytes (RFC 826).
const ETHERNET_IPV4: [u8; 6] = [0, 1, 0x08, 0x00, 6, 4];
const ARP_REQUEST: [u8; 2] = [0, 1];
const RARP_REQUEST: [u8; 2] = [0, 3];

/// The announcements of a station with these addresses.
pub(crate) fn announcements(mac: Mac, addresses: &Addresses) -> Vec<Frame> {
    let of_addresses = addresses.single().map(|address| match address {
        IpAddr::V4(address) => gratuitous_arp(mac, address),
        IpAddr::V6(address) => neighbour_advertisement(mac, address),
    });
    std::iter::once(reverse_arp(mac)).chain(of_addresses).collect()
}

fn reverse_arp(mac: Mac) -> Frame {
    let nobody = [0; 4];
    let packet = [&ETHERNET_IPV4[..], &RARP_REQUEST, &mac.bytes(), &nobody, &mac.bytes(), &nobody].concat();
    frame(BROADCAST, mac, RARP, &packet)
}

fn gratuitous_arp(mac: Mac, address: Ipv4Addr) -> Frame {
    let address = address.octets();
    let packet = [&ETHERNET_IPV4[..], &ARP_REQUEST, &mac.bytes(), &address, &[0; 6], &address].concat();
    frame(BROADCAST, mac, ARP, &packet)
}

fn neighbour_advertisement(mac: Mac, address: Ipv6Addr) -> Frame {
    const ICMPV6: u8 = 58;
    const LEN: u8 = 32;
    let [from, to] = [address.octets(), ALL_NODES.octets()];
    // Type 136; of router, solicited and override the last; the target, and its link-layer address (RFC 4861, 4.4 and 4.6.1).
    let mut advertisement = [&[136, 0, 0, 0, 0x20, 0, 0, 0][..], &from, &[2, 1], &mac.bytes()].concat();
    let mut sum = Sum::default();
    [&from[..], &to, &[0, 0, 0, LEN, 0, 0, 0, ICMPV6], &advertisement].iter().for_each(|part| sum.add(part));
    advertisement[2..4].copy_from_slice(&sum.checksum());
    let header = [&[0x60, 0, 0, 0, 0, LEN, ICMPV6, 255][..], &from, &to].concat();
    frame(ALL_NODES_MAC, mac, IPV6, &[header, advertisement].concat())
}

fn frame(to: [u8; 6], from: Mac, ether_type: [u8; 2], packet: &[u8]) -> Frame {
    let mut bytes = [&to[..], &from.bytes(), &ether_type, packet].concat();
    bytes.resize(bytes.len().max(SHORTEST), 0);
    Frame::from_slice(&bytes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use etherparse::{Icmpv6Type, SlicedPacket, TransportSlice};

    const MAC: Mac = Mac::new([2, 0, 0, 0, 0, 7]);

    #[test]
    fn single_addresses_are_announced_and_prefixes_are_not() {
        let addresses: Addresses = "10.0.0.7 10.1.0.0/16 fd00::7 fd01::/64".parse().unwrap();
        let frames: Vec<Vec<u8>> = announcements(MAC, &addresses).iter().map(Frame::to_vec).collect();
        let [rarp, arp, advertisement] = &frames[..] else { panic!("{frames:?}") };
        assert!(frames.iter().all(|frame| frame[6..12] == MAC.bytes() && frame.len() >= SHORTEST));
        assert_eq!((&rarp[12..14], &rarp[20..22], &rarp[22..28]), (&RARP[..], &[0, 3][..], &MAC.bytes()[..]));
        assert_eq!((&arp[12..14], &arp[20..22]), (&ARP[..], &[0, 1][..]));
        assert_eq!((&arp[28..32], &arp[38..42]), (&[10, 0, 0, 7][..], &[10, 0, 0, 7][..]));
        let sliced = SlicedPacket::from_ethernet(advertisement).unwrap();
        let Some(TransportSlice::Icmpv6(icmp)) = sliced.transport else { panic!("{sliced:?}") };
        let Icmpv6Type::NeighborAdvertisement(flags) = icmp.icmp_type() else { panic!("{icmp:?}") };
        assert!(flags.r#override && !flags.solicited && !flags.router);
        let from = "fd00::7".parse::<Ipv6Addr>().unwrap().octets();
        assert!(icmp.is_checksum_valid(from, ALL_NODES.octets()));
        assert_eq!((&advertisement[62..78], &advertisement[80..86]), (&from[..], &MAC.bytes()[..]));
    }
}
