//! Ports in VLANs, with the kernel at both ends: its TCP checks the checksums and segments of frames that get a tag or lose one.

mod common;

use bridge::{
    Bridge, Caps, Config, DropReason, Frame, Gso, GsoKind, Offload, PortSettings, Setting,
    partial_checksum::mark_blank,
};
use common::{
    host::{in_namespaces, sh, tap_host, transfer},
    pair, send, take,
};
use etherparse::PacketBuilder;

fn of(vlans: &str) -> PortSettings {
    PortSettings { vlans: vlans.parse().unwrap(), ..PortSettings::default() }
}

/// Bytes that are transferred.
const LEN: usize = 4 << 20;

/// Two bridges that are joined by a trunk, on which frames have tags.
fn transfer_by_a_trunk(caps: Caps) {
    let [one, two] = [(); 2].map(|()| Bridge::start(Config::default()).unwrap());
    let (end, other_end) = pair(caps);
    one.attach_with("trunk", Box::new(end), of("20p/10")).unwrap();
    two.attach_with("trunk", Box::new(other_end), of("30p/10")).unwrap();
    let (a, tap) = tap_host(1);
    one.attach_with("a", Box::new(tap), of("10")).unwrap();
    let (b, tap) = tap_host(2);
    two.attach_with("b", Box::new(tap), of("10")).unwrap();
    let (c, tap) = tap_host(3);
    one.attach_with("c", Box::new(tap), of("20")).unwrap();
    transfer(&a, &b, "10.0.0.2", LEN);
    transfer(&b, &a, "10.0.0.1", LEN);
    let counters = one.ports().unwrap()[1].counters;
    assert!(counters.rx_bytes / counters.rx_frames > 1514, "unsegmented frames: {counters:?}");
    c.run(|| sh("! ping -n -c 1 -W 1 10.0.0.1"));
    one.set("c", Setting::Vlans("10".parse().unwrap())).unwrap();
    transfer(&c, &b, "10.0.0.2", LEN);
    let vlans: Vec<_> = two.fdb().unwrap().into_iter().map(|row| (row.port, row.vlan)).collect();
    assert!(vlans.contains(&("trunk".to_owned(), 10)), "{vlans:?}");
}

#[test]
fn trunk_carries_what_is_to_be_done_for_frames() {
    in_namespaces("trunk_carries_what_is_to_be_done_for_frames", || transfer_by_a_trunk(Caps::full(1500)));
}

#[test]
fn frames_with_tags_are_cut_and_summed_for_the_kernel() {
    in_namespaces("frames_with_tags_are_cut_and_summed_for_the_kernel", || {
        transfer_by_a_trunk(Caps::plain(1500));
    });
}

fn tcp() -> Frame {
    let mut bytes = Vec::new();
    let builder =
        PacketBuilder::ethernet2([2, 0, 0, 0, 0, 1], [0xff; 6]).ipv4([10, 0, 0, 1], [10, 0, 0, 2], 64);
    builder.tcp(1, 2, 3, 4).write(&mut bytes, &[5; 3000]).unwrap();
    let mut frame = Frame::from_slice(&bytes);
    let gso = Some(Gso { kind: GsoKind::TcpV4, size: 1000 });
    frame.set_offload(Offload { gso, ..Offload::NONE });
    mark_blank(&mut frame).unwrap();
    frame
}

#[test]
fn tag_moves_what_is_to_be_done_for_a_frame() {
    let bridge = Bridge::start(Config::default()).unwrap();
    let attach = |name: &str, caps, vlans| {
        let (end, port) = pair(caps);
        bridge.attach_with(name, Box::new(port), of(vlans)).unwrap();
        end
    };
    let mut access = attach("access", Caps::full(1500), "10");
    let mut trunk = attach("trunk", Caps::full(1500), "20p/10");
    let mut plain = attach("plain", Caps::plain(1500), "20p/10");
    let mut same = attach("same", Caps::full(1500), "10");
    send(&mut access, &[tcp()]);
    let whole = take(&mut trunk, 1).remove(0);
    let untagged = take(&mut same, 1).remove(0);
    assert_eq!((untagged.to_vec(), untagged.offload()), (tcp().to_vec(), tcp().offload()));
    assert_eq!(whole.head()[12..18], [0x81, 0, 0, 10, 8, 0]);
    assert_eq!((whole.len(), whole.offload().gso), (untagged.len() + 4, untagged.offload().gso));
    assert_eq!(whole.offload().csum.unwrap().start, 38);
    let segments = take(&mut plain, 3);
    for segment in &segments {
        let bytes = segment.to_vec();
        let packet = etherparse::SlicedPacket::from_ethernet(&bytes).unwrap();
        let (Some(net), Some(etherparse::TransportSlice::Tcp(tcp))) = (&packet.net, &packet.transport) else {
            panic!("{packet:?}")
        };
        let etherparse::NetSlice::Ipv4(ip) = net else { panic!("{net:?}") };
        let sum = tcp.calc_checksum_ipv4(ip.header().source(), ip.header().destination()).unwrap();
        assert_eq!(tcp.checksum(), sum);
        assert_eq!(bytes[12..16], [0x81, 0, 0, 10]);
    }
    // And back: what the trunk sends loses its tag.
    send(&mut trunk, &[whole]);
    let back = take(&mut same, 1).remove(0);
    assert_eq!((back.to_vec(), back.offload()), (tcp().to_vec(), tcp().offload()));
    let ports = bridge.ports().unwrap();
    assert!(ports.iter().all(|port| port.counters.dropped(DropReason::Vlan) == 0));
}
