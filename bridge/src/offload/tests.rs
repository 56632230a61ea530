//! Compares software offloads with packets that etherparse makes and checks.

use etherparse::{NetHeaders, PacketBuilder, PacketHeaders, TransportHeader};
use proptest::prelude::*;

use super::*;
use crate::{
    Csum, Gso, GsoKind, Offload,
    partial_checksum::{fill_csum, mark_blank, put_field},
};

const MACS: ([u8; 6], [u8; 6]) = ([2, 0, 0, 0, 0, 1], [2, 0, 0, 0, 0, 2]);

fn packet(v6: bool, tcp: bool, payload: &[u8]) -> Vec<u8> {
    let ethernet = PacketBuilder::ethernet2(MACS.0, MACS.1);
    let ip = match v6 {
        true => ethernet.ipv6([0xfd; 16], [0xfe; 16], 64),
        false => ethernet.ipv4([10, 0, 0, 1], [10, 0, 0, 2], 64),
    };
    let mut bytes = Vec::new();
    match tcp {
        true => ip.tcp(1000, 2000, 0xffff_ff00, 512).psh().fin().ack(7).write(&mut bytes, payload),
        false => ip.udp(1000, 2000).write(&mut bytes, payload),
    }
    .unwrap();
    bytes
}

/// Bytes before the payload.
fn header_len(v6: bool, tcp: bool) -> usize {
    14 + if v6 { 40 } else { 20 } + if tcp { 20 } else { 8 }
}

/// Checks lengths and all checksums of a TCP frame; returns sequence number, flags and payload.
fn check_tcp(bytes: &[u8]) -> (u32, [bool; 2], Vec<u8>) {
    let headers = PacketHeaders::from_ethernet_slice(bytes).unwrap();
    let payload = headers.payload.slice();
    let Some(TransportHeader::Tcp(tcp)) = headers.transport else { panic!("not TCP") };
    let expected = match headers.net.unwrap() {
        NetHeaders::Ipv4(ip, _) => {
            assert_eq!(usize::from(ip.total_len), bytes.len() - 14);
            assert_eq!(ip.header_checksum, ip.calc_header_checksum());
            tcp.calc_checksum_ipv4(&ip, payload).unwrap()
        }
        NetHeaders::Ipv6(ip, _) => {
            assert_eq!(usize::from(ip.payload_length), bytes.len() - 54);
            tcp.calc_checksum_ipv6(&ip, payload).unwrap()
        }
        _ => panic!("not IP"),
    };
    assert_eq!(tcp.checksum, expected);
    (tcp.sequence_number, [tcp.psh, tcp.fin], payload.to_vec())
}

/// Checks lengths and all checksums of a UDP frame; returns the payload.
fn check_udp(bytes: &[u8]) -> Vec<u8> {
    let headers = PacketHeaders::from_ethernet_slice(bytes).unwrap();
    let payload = headers.payload.slice();
    let Some(TransportHeader::Udp(udp)) = headers.transport else { panic!("not UDP") };
    assert_eq!(usize::from(udp.length), 8 + payload.len());
    let expected = match headers.net.unwrap() {
        NetHeaders::Ipv4(ip, _) => {
            assert_eq!(usize::from(ip.total_len), bytes.len() - 14);
            assert_eq!(ip.header_checksum, ip.calc_header_checksum());
            udp.calc_checksum_ipv4(&ip, payload).unwrap()
        }
        NetHeaders::Ipv6(ip, _) => {
            assert_eq!(usize::from(ip.payload_length), bytes.len() - 54);
            udp.calc_checksum_ipv6(&ip, payload).unwrap()
        }
        _ => panic!("not IP"),
    };
    assert_eq!(udp.checksum, expected);
    payload.to_vec()
}

/// Takes partial checksums, if `partial`, of outermost headers, as Xen's guests do.
fn caps(partial: bool) -> Caps {
    Caps { csum_v4: partial, csum_v6: partial, ..Caps::plain(1500) }
}

fn cut(frame: &Frame, caps: &Caps) -> Result<Vec<Frame>, Malformed> {
    let mut segments = match action(frame, caps)? {
        Action::Segment(segments) => segments,
        other => panic!("{other:?}"),
    };
    let mut all = Vec::new();
    loop {
        let mut segment = Frame::new();
        match segments.next_into(&mut segment)? {
            true => all.push(segment),
            false => return Ok(all),
        }
    }
}

proptest! {
    #[test]
    fn filled_checksum_equals_that_of_etherparse(
        v6: bool, tcp: bool, payload in prop::collection::vec(any::<u8>(), 0..1460),
    ) {
        let whole = packet(v6, tcp, &payload);
        let mut blank = Frame::from_slice(&whole);
        let csum = crate::headers::Headers::parse(blank.head()).unwrap().csum().unwrap();
        put_field(&mut blank, csum, [0xab, 0xcd]).unwrap();
        mark_blank(&mut blank).unwrap();
        prop_assert!(passes(&blank, &Caps::full(1500)));
        prop_assert!(matches!(action(&blank, &Caps::plain(1500)), Ok(Action::FillChecksum)));
        fill_csum(&mut blank).unwrap();
        prop_assert_eq!(blank.offload().csum, None);
        prop_assert_eq!(blank.to_vec(), whole);
    }

    #[test]
    fn segments_join_to_the_payload(
        v6: bool, size in 48..2000u16,
        payload in prop::collection::vec(any::<u8>(), 1..if cfg!(miri) { 600 } else { 20_000 }), partial: bool,
    ) {
        let whole = packet(v6, true, &payload);
        let mut frame = Frame::from_slice(&whole);
        let kind = if v6 { GsoKind::TcpV6 } else { GsoKind::TcpV4 };
        frame.set_offload(Offload { gso: Some(Gso { kind, size }), ..Offload::NONE });
        mark_blank(&mut frame).unwrap();
        let caps = caps(partial);
        let segments = cut(&frame, &caps).unwrap();
        prop_assert_eq!(segments.len(), payload.len().div_ceil(size.into()));
        let mut joined = Vec::new();
        for (i, mut segment) in segments.iter().cloned().enumerate() {
            prop_assert_eq!(segment.offload().csum.is_some(), partial);
            fill_csum(&mut segment).unwrap();
            let (sequence, flags, part) = check_tcp(&segment.to_vec());
            prop_assert_eq!(sequence, 0xffff_ff00u32.wrapping_add(joined.len() as u32));
            prop_assert_eq!(flags, [i + 1 == segments.len(); 2]);
            joined.extend(part);
        }
        prop_assert_eq!(joined, payload);
    }

    #[test]
    fn random_metadata_never_panics(
        bytes in prop::collection::vec(any::<u8>(), 0..400), v6: bool, sane: bool,
        start: u16, offset in 0..200u16, size: u16, csum: bool, gso: bool,
    ) {
        let mut bytes = bytes;
        if sane {
            bytes.splice(..0, packet(v6, true, &[1; 100])[..header_len(v6, true)].iter().copied());
        }
        let mut frame = Frame::from_slice(&bytes);
        let start = if sane { start % 400 } else { start };
        let kind = if v6 { GsoKind::TcpV6 } else { GsoKind::TcpV4 };
        frame.set_offload(Offload {
            csum: csum.then_some(Csum { start, offset }), verified: false, gso: gso.then_some(Gso { kind, size }),
        });
        match action(&frame, &Caps::plain(1500)) {
            Ok(Action::FillChecksum) => drop(fill_csum(&mut frame)),
            Ok(Action::Segment(mut segments)) => {
                let mut segment = Frame::new();
                let count = (0..).take_while(|_| segments.next_into(&mut segment) == Ok(true)).count();
                prop_assert!(count <= 10);
            }
            Ok(Action::Send) => prop_assert!(!csum && !gso),
            Err(Malformed) => {}
        }
        prop_assert_eq!(frame.len(), bytes.len());
    }
}

#[test]
fn frame_is_sent_whole_to_port_that_takes_its_offloads() {
    let mut frame = Frame::from_slice(&packet(false, true, &[7; 3000]));
    frame.set_offload(Offload { gso: Some(Gso { kind: GsoKind::TcpV4, size: 1448 }), ..Offload::NONE });
    mark_blank(&mut frame).unwrap();
    assert!(matches!(action(&frame, &Caps::full(1500)), Ok(Action::Send)));
    let narrow = Caps { sg: false, ..Caps::full(1500) };
    assert!(matches!(action(&frame, &narrow), Ok(Action::Segment(_))));
}

#[test]
fn small_segments_and_fields_beyond_the_head_are_refused() {
    let mut frame = Frame::from_slice(&packet(false, true, &[7; 3000]));
    for size in [0, 1, 47] {
        let gso = Gso { kind: GsoKind::TcpV4, size };
        assert!(Segments::new(&frame, gso, false).is_err());
    }
    for csum in [Csum { start: 100, offset: 3000 }, Csum { start: 4000, offset: 0 }] {
        frame.set_offload(Offload { csum: Some(csum), ..Offload::NONE });
        assert_eq!(fill_csum(&mut frame), Err(Malformed));
    }
}

/// `inner` as the payload of a UDP packet, as a tunnel (VXLAN, Geneve) sends it.
fn tunnelled(v6: bool, inner: &[u8]) -> Vec<u8> {
    packet(v6, false, &[&[8, 0, 0, 0, 0, 0, 9, 0], inner].concat())
}

proptest! {
    #[test]
    fn inner_checksum_is_filled_for_a_port_that_takes_only_the_outermost(
        outer_v6: bool, v6: bool, tcp: bool, payload in prop::collection::vec(any::<u8>(), 0..1300),
    ) {
        let inner = packet(v6, tcp, &payload);
        let whole = tunnelled(outer_v6, &inner);
        let start = whole.len() - payload.len() - if tcp { 20 } else { 8 };
        let csum = Csum { start: start as u16, offset: if tcp { 16 } else { 6 } };
        let at = start + usize::from(csum.offset);
        let mut sent = whole.clone();
        let mut blank = Frame::from_slice(&inner);
        mark_blank(&mut blank).unwrap();
        sent[at..at + 2].copy_from_slice(&blank.to_vec()[at + inner.len() - whole.len()..][..2]);
        let mut frame = Frame::from_slice(&sent);
        frame.set_offload(Offload { csum: Some(csum), verified: true, gso: None });
        prop_assert!(passes(&frame, &Caps::full(1500)));
        let other = frame.clone();
        prop_assert!(matches!(action(&frame, &caps(true)), Ok(Action::FillChecksum)));
        fill_csum(&mut frame).unwrap();
        prop_assert_eq!(frame.to_vec(), whole);
        prop_assert_eq!(other.to_vec(), sent);
    }

    #[test]
    fn datagrams_of_a_segmented_udp_frame_join_to_the_payload(
        v6: bool, size in 1..1472u16, datagrams in 1..if cfg!(miri) { 3 } else { 60usize }, last in 0..1472usize,
        partial: bool,
    ) {
        let payload: Vec<u8> = (0..(datagrams - 1) * usize::from(size) + 1 + last % usize::from(size))
            .map(|i| ((i * 31) >> 3) as u8)
            .take(60_000)
            .collect();
        let mut frame = Frame::from_slice(&packet(v6, false, &payload));
        frame.set_offload(Offload { gso: Some(Gso { kind: GsoKind::Udp, size }), ..Offload::NONE });
        mark_blank(&mut frame).unwrap();
        let mut joined = Vec::new();
        for mut datagram in cut(&frame, &caps(partial)).unwrap() {
            prop_assert_eq!(datagram.offload().csum.is_some(), partial);
            fill_csum(&mut datagram).unwrap();
            let part = check_udp(&datagram.to_vec());
            prop_assert!(part.len() == usize::from(size) || joined.len() + part.len() == payload.len());
            joined.extend(part);
        }
        prop_assert_eq!(joined, payload);
    }
}

#[test]
fn more_datagrams_than_linux_sends_are_refused() {
    let frame = Frame::from_slice(&packet(false, false, &[7; 1290]));
    let gso = |size| Gso { kind: GsoKind::Udp, size };
    assert!(Segments::new(&frame, gso(11), false).is_ok());
    assert!(Segments::new(&frame, gso(10), false).is_err());
    assert!(Segments::new(&frame, gso(0), false).is_err());
}

#[test]
fn segmentation_that_would_lose_an_inner_checksum_is_refused() {
    let mut frame = Frame::from_slice(&packet(false, true, &[7; 3000]));
    let gso = Gso { kind: GsoKind::TcpV4, size: 1448 };
    frame.set_offload(Offload { csum: Some(Csum { start: 84, offset: 16 }), verified: true, gso: Some(gso) });
    assert!(action(&frame, &caps(true)).is_err());
}

/// Linux's netfront drops a tagged frame that is marked `csum_blank`: it looks for the IP header behind the Ethernet header.
#[test]
fn checksum_behind_a_tag_is_filled_for_a_port_that_takes_only_the_outermost() {
    let mut tagged = packet(false, true, &[7; 3000]);
    tagged.splice(12..12, [0x81, 0, 0, 5]);
    let mut frame = Frame::from_slice(&tagged[..1000]);
    mark_blank(&mut frame).unwrap();
    assert!(matches!(action(&frame, &caps(true)), Ok(Action::FillChecksum)));
    assert!(passes(&frame, &Caps::full(1500)));
    let mut long = Frame::from_slice(&tagged);
    long.set_offload(Offload { gso: Some(Gso { kind: GsoKind::TcpV4, size: 1448 }), ..Offload::NONE });
    mark_blank(&mut long).unwrap();
    let wire = Caps { gso_v4: true, ..caps(true) };
    for segment in cut(&long, &wire).unwrap() {
        assert_eq!(segment.offload().csum, None);
    }
}

/// The payload that makes the checksum zero is the checksum with a payload of zeroes.
#[test]
fn zero_checksum_is_written_as_etherparse_does() {
    for (v6, tcp) in [(false, false), (false, true), (true, false), (true, true)] {
        let at = header_len(v6, tcp) - if tcp { 4 } else { 2 };
        let zeroes = packet(v6, tcp, &[0, 0]);
        let whole = packet(v6, tcp, &zeroes[at..at + 2]);
        assert_eq!(whole[at..at + 2], if tcp { [0, 0] } else { [0xff, 0xff] });
        let mut blank = Frame::from_slice(&whole);
        mark_blank(&mut blank).unwrap();
        fill_csum(&mut blank).unwrap();
        assert_eq!(blank.to_vec(), whole);
    }
}
