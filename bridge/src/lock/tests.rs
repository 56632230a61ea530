//! Which frames pass under `lock=ip`, as a table, and that no bytes make the rules panic.

use core::net::Ipv6Addr;

use proptest::prelude::*;

use super::*;
use crate::{Gso, GsoKind, Offload};
use DropReason::{LockArp, LockDhcp, LockHeaders, LockIp, LockNdp, LockRouter, LockType, Runt};

const OWN: [u8; 6] = [0, 0x16, 0x3e, 0, 0, 1];
const OTHER: [u8; 6] = [0, 0x16, 0x3e, 0, 0, 2];
const LINK_LOCAL: &str = "fe80::216:3eff:fe00:1";

fn check_frame(frame: &Frame) -> Result<(), DropReason> {
    let allowed = "10.0.0.5 10.8.0.0/16 2001:db8::5 2001:db8:1::/64".parse().unwrap();
    check(frame, Mac::new(OWN), &allowed)
}

fn checked(bytes: &[u8]) -> Result<(), DropReason> {
    check_frame(&Frame::from_slice(bytes))
}

fn ethernet(kind: u16, packet: &[u8]) -> Vec<u8> {
    [&[0xff; 6][..], &OWN, &kind.to_be_bytes(), packet].concat()
}

fn arp(op: u8, sha: [u8; 6], spa: [u8; 4], tpa: [u8; 4]) -> Vec<u8> {
    ethernet(0x806, &[&[0, 1, 8, 0, 6, 4, 0, op][..], &sha, &spa, &[0; 6], &tpa, &[0; 18]].concat())
}

/// `fragment` is the field of flags and offset.
fn v4(from: [u8; 4], to: [u8; 4], protocol: u8, fragment: u16, payload: &[u8]) -> Vec<u8> {
    let len = (20 + payload.len() as u16).to_be_bytes();
    let [f0, f1] = fragment.to_be_bytes();
    let header = [0x45, 0, len[0], len[1], 0, 0, f0, f1, 64, protocol, 0, 0];
    ethernet(0x800, &[&header[..], &from, &to, payload].concat())
}

fn udp(from: u16, to: u16) -> Vec<u8> {
    [from.to_be_bytes(), to.to_be_bytes(), [0, 12], [0, 0], [0; 2], [0; 2]].concat()
}

fn v6(from: &str, protocol: u8, payload: &[u8]) -> Vec<u8> {
    let from: Ipv6Addr = from.parse().unwrap();
    let [l0, l1] = (payload.len() as u16).to_be_bytes();
    let header = [0x60, 0, 0, 0, l0, l1, protocol, 255];
    ethernet(0x86dd, &[&header[..], &from.octets(), &[0xff; 16], payload].concat())
}

/// An ICMPv6 message with a target and options.
fn neighbour(kind: u8, target: &str, options: &[u8]) -> Vec<u8> {
    let target: Ipv6Addr = target.parse().unwrap();
    [&[kind, 0, 0, 0, 0, 0, 0, 0][..], &target.octets(), options].concat()
}

fn link_layer(kind: u8, mac: [u8; 6]) -> Vec<u8> {
    [&[kind, 1][..], &mac].concat()
}

#[test]
fn arp_is_of_both_own_addresses() {
    let own = [10, 0, 0, 5];
    let gateway = [10, 0, 0, 1];
    assert_eq!(checked(&arp(1, OWN, own, gateway)), Ok(()));
    assert_eq!(checked(&arp(2, OWN, own, gateway)), Ok(()));
    assert_eq!(checked(&arp(1, OWN, [10, 8, 3, 4], gateway)), Ok(()));
    assert_eq!(checked(&arp(1, OWN, own, own)), Ok(()), "an announcement");
    assert_eq!(checked(&arp(1, OWN, [0; 4], own)), Ok(()), "a probe");
    assert_eq!(checked(&arp(1, OWN, [0; 4], gateway)), Err(LockArp), "a probe for another's address");
    assert_eq!(checked(&arp(2, OWN, [0; 4], own)), Err(LockArp));
    assert_eq!(checked(&arp(1, OTHER, own, gateway)), Err(LockArp));
    assert_eq!(checked(&arp(2, OWN, gateway, own)), Err(LockArp));
    assert_eq!(checked(&arp(3, OWN, own, own)), Err(LockArp), "RARP");
    let mut of_lengths = arp(1, OWN, own, own);
    of_lengths[18] = 8;
    assert_eq!(checked(&of_lengths), Err(LockArp));
    assert_eq!(checked(&arp(1, OWN, own, own)[..41]), Err(LockHeaders));
}

#[test]
fn ipv4_is_from_an_own_address_and_no_dhcp_server() {
    let own = [10, 0, 0, 5];
    let all = [255; 4];
    assert_eq!(checked(&v4(own, all, 6, 0, &[0; 20])), Ok(()));
    assert_eq!(checked(&v4([10, 0, 0, 6], all, 6, 0, &[0; 20])), Err(LockIp));
    assert_eq!(checked(&v4(own, all, 17, 0, &udp(68, 67))), Ok(()));
    assert_eq!(checked(&v4(own, all, 17, 0, &udp(67, 68))), Err(LockDhcp));
    assert_eq!(
        checked(&v4(own, all, 17, 0, &udp(1067, 68))),
        Err(LockDhcp),
        "clients do not look at a server's port"
    );
    assert_eq!(checked(&v4([0; 4], all, 17, 0, &udp(68, 67))), Ok(()), "a client without an address");
    assert_eq!(checked(&v4([0; 4], own, 17, 0, &udp(68, 67))), Err(LockIp));
    assert_eq!(checked(&v4([0; 4], all, 17, 0, &udp(68, 53))), Err(LockIp));
    assert_eq!(checked(&v4([0; 4], all, 17, 0x2000, &udp(68, 67))), Err(LockIp));
    assert_eq!(checked(&v4([0; 4], all, 6, 0, &[0; 20])), Err(LockIp));
    let report = [0x22, 0, 0, 0, 0, 0, 0, 0];
    assert_eq!(checked(&v4([0; 4], [224, 0, 0, 22], 2, 0, &report)), Ok(()));
    assert_eq!(checked(&v4([0; 4], [224, 0, 0, 1], 2, 0, &[0x11, 0, 0, 0, 0, 0, 0, 0])), Err(LockIp));
    assert_eq!(checked(&v4([0; 4], own, 2, 0, &report)), Err(LockIp));
}

#[test]
fn fragments_of_ipv4_hide_nothing() {
    let own = [10, 0, 0, 5];
    let of = |fragment, payload: &[u8]| checked(&v4(own, [255; 4], 17, fragment, payload));
    assert_eq!(of(0x2000, &udp(1, 2)), Ok(()));
    assert_eq!(of(0x2000, &udp(67, 68)), Err(LockDhcp));
    assert_eq!(of(0x2000, &udp(67, 68)[..7]), Err(LockHeaders), "a tiny first fragment");
    assert_eq!(of(0x2000, &[]), Err(LockHeaders));
    assert_eq!(of(0x0001, &[1]), Ok(()));
    assert_eq!(checked(&v4([10, 0, 0, 6], [255; 4], 17, 1, &[1; 8])), Err(LockIp));
    let mut with_options = v4(own, [255; 4], 17, 0, &[&[1; 40][..], &udp(67, 68)].concat());
    with_options[14] = 0x4f;
    assert_eq!(checked(&with_options), Err(LockDhcp));
    for (at, value) in [(14, 0x44), (14, 0x65), (14, 0x4f), (16, 1), (17, 19)] {
        let mut bad = v4(own, [255; 4], 17, 0, &udp(1, 2));
        bad[at] = value;
        assert_eq!(checked(&bad), Err(LockHeaders), "byte {at} is {value}");
    }
    let mut gso = Frame::from_slice(&v4(own, [255; 4], 6, 0, &[0; 20]));
    gso.head_mut()[17] = 0;
    gso.set_offload(Offload { gso: Some(Gso { kind: GsoKind::TcpV4, size: 500 }), ..Offload::NONE });
    assert_eq!(check_frame(&gso), Ok(()), "its segments get their lengths later");
}

#[test]
fn ipv6_is_from_an_own_address_and_no_dhcp_server_or_router() {
    for own in [LINK_LOCAL, "2001:db8::5", "2001:db8:1::77"] {
        assert_eq!(checked(&v6(own, 17, &udp(546, 547))), Ok(()), "{own}");
        assert_eq!(checked(&v6(own, 17, &udp(547, 546))), Err(LockDhcp));
        assert_eq!(checked(&v6(own, 17, &udp(1547, 546))), Err(LockDhcp));
        assert_eq!(checked(&v6(own, 58, &[134; 16])), Err(LockRouter));
        assert_eq!(checked(&v6(own, 58, &[137; 40])), Err(LockRouter));
        assert_eq!(checked(&v6(own, 58, &[128; 8])), Ok(()));
    }
    for other in ["2001:db8::6", "fe80::1", "fe80::216:3eff:fe00:2", "::ffff:10.0.0.5", "::1", "ff02::1"] {
        assert_eq!(checked(&v6(other, 17, &udp(1, 2))), Err(LockIp), "{other}");
    }
    assert_eq!(checked(&v6("::", 17, &udp(546, 547))), Err(LockIp));
    assert_eq!(checked(&v6("::", 58, &[128; 8])), Err(LockIp));
    let report = [&[58, 0, 5, 2, 0, 0, 1, 0][..], &[143], &[0; 27]].concat();
    for own in ["::", LINK_LOCAL] {
        assert_eq!(checked(&v6(own, 0, &report)), Ok(()), "a listener's report from {own}");
    }
}

#[test]
fn neighbour_discovery_is_of_own_addresses() {
    let of =
        |from: &str, kind, target, options: &[u8]| checked(&v6(from, 58, &neighbour(kind, target, options)));
    let own = link_layer(1, OWN);
    assert_eq!(of(LINK_LOCAL, 135, "2001:db8::9", &own), Ok(()));
    assert_eq!(of(LINK_LOCAL, 135, "2001:db8::9", &link_layer(1, OTHER)), Err(LockNdp));
    assert_eq!(of("::", 135, "2001:db8::5", &[]), Ok(()), "a test of its own address");
    assert_eq!(of("::", 135, LINK_LOCAL, &[14, 1, 1, 2, 3, 4, 5, 6]), Ok(()), "with a nonce");
    assert_eq!(of("::", 135, "2001:db8::6", &[]), Err(LockNdp));
    assert_eq!(of("2001:db8::5", 136, "2001:db8::5", &link_layer(2, OWN)), Ok(()));
    assert_eq!(of(LINK_LOCAL, 136, "2001:db8:1::1", &[]), Ok(()));
    assert_eq!(of("2001:db8::5", 136, "2001:db8::1", &link_layer(2, OWN)), Err(LockNdp));
    assert_eq!(of("2001:db8::5", 136, "2001:db8::5", &link_layer(2, OTHER)), Err(LockNdp));
    assert_eq!(of("::", 136, "2001:db8::5", &[]), Err(LockNdp));
    let second = [link_layer(14, OTHER), link_layer(2, OTHER)].concat();
    assert_eq!(of("2001:db8::5", 136, "2001:db8::5", &second), Err(LockNdp));
    for bad in [&[2, 0, 0, 0, 0, 0, 0, 0][..], &[2, 2, 0, 0, 0, 0, 0, 0], &[2]] {
        assert_eq!(of("2001:db8::5", 136, "2001:db8::5", bad), Err(LockHeaders));
    }
    let beyond = [&[14, 10][..], &[0; 78], &link_layer(2, OTHER)].concat();
    assert_eq!(of("2001:db8::5", 136, "2001:db8::5", &beyond), Err(LockHeaders), "not to be read");
    assert_eq!(checked(&v6("::", 58, &[133, 0, 0, 0, 0, 0, 0, 0])), Ok(()));
    let solicitation = [&[133, 0, 0, 0, 0, 0, 0, 0][..], &link_layer(1, OTHER)].concat();
    assert_eq!(checked(&v6(LINK_LOCAL, 58, &solicitation)), Err(LockNdp));
    assert_eq!(checked(&v6(LINK_LOCAL, 58, &[135, 0, 0, 0])), Err(LockHeaders));
}

#[test]
fn extension_headers_and_fragments_of_ipv6_hide_nothing() {
    let advertisement = [&[134][..], &[0; 15]].concat();
    let extension = |next: u8, payload: &[u8]| [&[next, 0, 1, 4, 0, 0, 0, 0][..], payload].concat();
    for kind in [0, 43, 60] {
        assert_eq!(checked(&v6(LINK_LOCAL, kind, &extension(58, &advertisement))), Err(LockRouter), "{kind}");
        assert_eq!(checked(&v6(LINK_LOCAL, kind, &extension(17, &udp(547, 546)))), Err(LockDhcp));
        assert_eq!(checked(&v6(LINK_LOCAL, kind, &extension(kind, &extension(6, &[0; 20])))), Ok(()));
        assert_eq!(checked(&v6(LINK_LOCAL, kind, &[6, 31, 0, 0, 0, 0, 0, 0])), Err(LockHeaders));
        assert_eq!(checked(&v6(LINK_LOCAL, kind, &[])), Err(LockHeaders));
    }
    let authentication = [&[58, 2][..], &[0; 14], &advertisement].concat();
    assert_eq!(checked(&v6(LINK_LOCAL, 51, &authentication)), Err(LockRouter));
    let fragment = |from, next: u8, at: u16, payload: &[u8]| {
        let [a, b] = at.to_be_bytes();
        checked(&v6(from, 44, &[&[next, 0, a, b, 0, 0, 0, 7][..], payload].concat()))
    };
    assert_eq!(fragment(LINK_LOCAL, 58, 1, &advertisement), Err(LockRouter));
    assert_eq!(fragment(LINK_LOCAL, 60, 1, &extension(58, &advertisement)), Err(LockRouter));
    assert_eq!(fragment(LINK_LOCAL, 60, 1, &[58, 0, 0, 0, 0, 0, 0, 0]), Err(LockHeaders), "ends too early");
    assert_eq!(fragment(LINK_LOCAL, 58, 1, &[]), Err(LockHeaders));
    assert_eq!(fragment(LINK_LOCAL, 6, 1, &[0; 24]), Ok(()));
    assert_eq!(fragment(LINK_LOCAL, 58, 8, &advertisement), Ok(()), "of no use without the first");
    assert_eq!(fragment("2001:db8::6", 58, 8, &advertisement), Err(LockIp));
    assert_eq!(fragment("::", 58, 8, &advertisement), Err(LockIp));
    let own = neighbour(136, LINK_LOCAL, &link_layer(2, OWN));
    assert_eq!(fragment(LINK_LOCAL, 58, 0, &own), Err(LockNdp), "not even whole (RFC 6980)");
}

#[test]
fn tags_hide_nothing_and_other_protocols_do_not_pass() {
    let tagged =
        |kind: u16, bytes: Vec<u8>| [&bytes[..12], &kind.to_be_bytes(), &[0, 5], &bytes[12..]].concat();
    let own = || v4([10, 0, 0, 5], [255; 4], 6, 0, &[0; 20]);
    let other = || v4([10, 0, 0, 6], [255; 4], 6, 0, &[0; 20]);
    for kind in [0x8100, 0x88a8] {
        assert_eq!(checked(&tagged(kind, own())), Ok(()));
        assert_eq!(checked(&tagged(kind, other())), Err(LockIp));
        assert_eq!(checked(&tagged(kind, tagged(0x8100, own()))), Err(LockType));
    }
    // LLC, which IPv4 could be in (RFC 1042), RARP, PPPoE, 802.1X.
    for kind in [46, 0x8035, 0x8864, 0x888e, 0x9100] {
        assert_eq!(checked(&ethernet(kind, &[0; 46])), Err(LockType));
    }
    assert_eq!(checked(&[0; 13]), Err(Runt));
    assert_eq!(checked(&tagged(0x8100, ethernet(0x800, &[]))[..16]), Err(LockHeaders));
}

proptest! {
    #[test]
    fn no_bytes_panic(mut bytes in prop::collection::vec(any::<u8>(), 0..200), kind in 0..5usize) {
        let kinds: [&[u8]; 5] = [&[8, 0, 0x45], &[8, 6, 0], &[0x86, 0xdd, 0x60], &[0x81, 0, 0, 1, 0x86, 0xdd, 0x60], &[]];
        if bytes.len() >= 32 {
            bytes[12..12 + kinds[kind].len()].copy_from_slice(kinds[kind]);
        }
        let frame = Frame::from_slice(&bytes);
        let all = "0.0.0.0/0 ::/0".parse().unwrap();
        let _ = check(&frame, Mac::new(OWN), &all);
        let none = check(&frame, Mac::new(OWN), &Addresses::default());
        // What needs no address is said in full.
        prop_assert!(none.is_err() || frame.len() >= 14 + 28);
    }
}
