//! Tests of the bridge with kernel interfaces: taps and packet sockets in private network namespaces.

mod common;

use std::net::UdpSocket;

use bridge::{
    Bridge, Caps, Config, Frame, Frames, Port,
    port::{
        netdev::{self, NetError},
        packet::Packet,
        tap::Tap,
    },
};
use common::{
    host::{Host, in_namespaces, in_namespaces_without, sh, tap_host, transfer},
    pair, take, until,
};
use nix::sys::socket::{setsockopt, sockopt};
use testkit::random::bytes;

fn ping(host: &Host, address: &'static str) {
    host.run(move || sh(&format!("ping -n -c 3 -i 0.05 -W 10 {address}")));
}

#[test]
fn taps_ping_and_transfer_with_offloads() {
    in_namespaces("taps_ping_and_transfer_with_offloads", || {
        let bridge = Bridge::start(Config::default()).unwrap();
        let (a, tap_a) = tap_host(1);
        let (b, tap_b) = tap_host(2);
        bridge.attach("a", Box::new(tap_a)).unwrap();
        bridge.attach("b", Box::new(tap_b)).unwrap();
        ping(&a, "10.0.0.2");
        transfer(&a, &b, "10.0.0.2", 8 << 20);
        let counters = bridge.ports().unwrap()[0].counters;
        assert!(counters.rx_bytes > 8 << 20, "{counters:?}");
        assert!(counters.rx_bytes / counters.rx_frames > 2000, "unsegmented frames: {counters:?}");
        assert_eq!(bridge.fdb().unwrap().len(), 2);
    });
}

/// Two bridges joined by ports without offloads: the kernel's TCP checks the checksums and segments made in software.
#[test]
fn software_offloads_satisfy_the_kernel() {
    in_namespaces("software_offloads_satisfy_the_kernel", || {
        let one = Bridge::start(Config::default()).unwrap();
        let two = Bridge::start(Config::default()).unwrap();
        let (a, tap_a) = tap_host(1);
        let (b, tap_b) = tap_host(2);
        let (end_a, end_b) = pair(Caps::plain(1500));
        one.attach("a", Box::new(tap_a)).unwrap();
        one.attach("trunk", Box::new(end_a)).unwrap();
        two.attach("trunk", Box::new(end_b)).unwrap();
        two.attach("b", Box::new(tap_b)).unwrap();
        ping(&a, "10.0.0.2");
        transfer(&a, &b, "10.0.0.2", 4 << 20);
        transfer(&b, &a, "10.0.0.1", 4 << 20);
        for (bridge, n) in [(&one, 1), (&two, 0)] {
            let counters = bridge.ports().unwrap()[n].counters;
            assert!(counters.rx_bytes / counters.rx_frames <= 1514, "segments: {counters:?}");
        }
    });
}

/// A host with a veth pair: `near` has `10.0.0.N`, `far` is to be joined to a bridge.
fn veth_host(n: u8) -> (Host, Packet) {
    let host = Host::new();
    let packet = host.run(move || {
        sh(&format!(
            "ip link add near type veth peer name far; ip link set near up; ip link set far up;
             ip address add 10.0.0.{n}/24 dev near"
        ));
        Packet::open("far").expect("a packet socket")
    });
    (host, packet)
}

/// A bridge between `10.0.0.1` behind a tap and `10.0.0.2` behind a packet socket, which have exchanged pings.
fn tap_and_veth_hosts() -> (Bridge, Host, Host) {
    let bridge = Bridge::start(Config::default()).unwrap();
    let (a, tap) = tap_host(1);
    let (b, packet) = veth_host(2);
    bridge.attach("a", Box::new(tap)).unwrap();
    bridge.attach("b", Box::new(packet)).unwrap();
    ping(&a, "10.0.0.2");
    (bridge, a, b)
}

#[test]
fn packet_socket_joins_an_interface() {
    in_namespaces("packet_socket_joins_an_interface", || {
        let (_bridge, a, b) = tap_and_veth_hosts();
        transfer(&a, &b, "10.0.0.2", 2 << 20);
        transfer(&b, &a, "10.0.0.1", 2 << 20);
    });
}

/// From a veth such datagrams come in one frame, which the bridge cuts.
#[test]
fn udp_that_the_kernel_is_to_segment_arrives_in_datagrams() {
    in_namespaces("udp_that_the_kernel_is_to_segment_arrives_in_datagrams", || {
        let (_bridge, a, b) = tap_and_veth_hosts();
        let receiver = a.run(|| UdpSocket::bind("10.0.0.1:7").unwrap());
        receiver.set_read_timeout(Some(common::BOUND)).unwrap();
        for (size, len) in [(1000, 40_500), (1472, 1472 * 40), (1, 60), (600, 500)] {
            let sent = bytes(3, len);
            let datagrams = sent.clone();
            b.run(move || {
                let sender = UdpSocket::bind("10.0.0.2:0").unwrap();
                setsockopt(&sender, sockopt::UdpGsoSegment, &size).unwrap();
                assert_eq!(sender.send_to(&datagrams, "10.0.0.1:7").unwrap(), len);
            });
            for datagram in sent.chunks(size as usize) {
                let mut into = [0; 2000];
                let len = receiver.recv(&mut into).unwrap();
                assert!(into[..len] == *datagram, "{len} bytes of {} in datagrams of {size}", sent.len());
            }
        }
    });
}

/// The kernel removes VLAN tags from received frames: the port inserts them again.
#[test]
fn packet_socket_keeps_vlan_tags() {
    in_namespaces("packet_socket_keeps_vlan_tags", || {
        let bridge = Bridge::start(Config::default()).unwrap();
        let (host, packet) = veth_host(1);
        let (mut end, port) = pair(Caps::plain(1500));
        bridge.attach("wire", Box::new(packet)).unwrap();
        bridge.attach("program", Box::new(port)).unwrap();
        for len in [60, 128, 129, 1518] {
            let addresses = [2, 0, 0, 0, 0, 9, 2, 0, 0, 0, 0, 1];
            let tagged =
                [&addresses[..], &[0x81, 0x00, 0x20, 0x05, 0x88, 0xb5], &bytes(1, len - 18)].concat();
            let sent = tagged.clone();
            host.run(move || {
                let mut near = Packet::open("near").expect("a packet socket");
                near.send(Frames::of(&[Frame::from_slice(&sent)])).expect("send");
            });
            let ours = |frame: &Frame| frame.head()[..12] == addresses;
            let frame = until("the tagged frame", || take(&mut end, 1).into_iter().find(ours));
            assert_eq!(frame.to_vec(), tagged);
        }
    });
}

#[test]
fn missing_and_used_interfaces_are_named_in_errors() {
    in_namespaces("missing_and_used_interfaces_are_named_in_errors", || {
        let tap = Tap::open("tap7").unwrap();
        assert!(matches!(Tap::open("tap7"), Err(NetError::Busy(name)) if name == "tap7"));
        assert!(matches!(Tap::open("lo"), Err(NetError::Busy(name)) if name == "lo"));
        assert!(matches!(Packet::open("eth9"), Err(NetError::NoInterface(name)) if name == "eth9"));
        assert!(matches!(netdev::join_bridge("tap7", "br9"), Err(NetError::NoBridge(name)) if name == "br9"));
        assert!(matches!(netdev::join_bridge("tap7", "lo"), Err(NetError::NoBridge(name)) if name == "lo"));
        sh("ip link add br9 type bridge");
        netdev::join_bridge("tap7", "br9").unwrap();
        assert!(
            matches!(netdev::join_bridge("tap7", "br9"), Err(NetError::Enslaved(name)) if name == "tap7")
        );
        assert!(sh("ip link show master br9").contains("tap7"));
        drop(tap);
        assert!(matches!(netdev::mtu("tap7"), Err(NetError::NoInterface(_))));
    });
}

#[test]
fn persistent_tap_keeps_its_alias_and_is_not_created_again() {
    in_namespaces("persistent_tap_keeps_its_alias_and_is_not_created_again", || {
        let tap = Tap::create("tap7").unwrap();
        assert!(!netdev::link("tap7").unwrap().persistent);
        netdev::set_alias("tap7", "made by a test").unwrap();
        tap.persist().unwrap();
        drop(tap);
        let link = netdev::link("tap7").unwrap();
        assert_eq!(link.alias.as_deref(), Some("made by a test"));
        assert!(link.persistent && link.kind.as_deref() == Some("tun") && link.master.is_none(), "{link:?}");
        assert!(matches!(Tap::create("tap7"), Err(NetError::Exists(name)) if name == "tap7"));
        assert!(matches!(Tap::create("lo"), Err(NetError::Exists(name)) if name == "lo"));
        assert!(matches!(netdev::set_alias("tap7", &"x".repeat(256)), Err(NetError::Os { .. })));
        sh("ip link add br9 type bridge");
        netdev::join_bridge("tap7", "br9").unwrap();
        assert_eq!(netdev::master("tap7").as_deref(), Some("br9"));
        Tap::open("tap7").unwrap().persist().unwrap().end().unwrap();
        assert!(matches!(netdev::link("tap7"), Err(NetError::NoInterface(_))));
    });
}

#[test]
fn missing_capability_is_named_in_errors() {
    in_namespaces_without("missing_capability_is_named_in_errors", &["-net_admin,-net_raw"], || {
        let check = |error: Option<NetError>, what: &str| {
            let text = error.map(|error| error.to_string());
            let wanted = format!("no permission to {what} is needed in this network namespace");
            assert_eq!(text, Some(wanted));
        };
        check(Tap::open("tap7").err(), r#"make tap "tap7": CAP_NET_ADMIN"#);
        check(Packet::open("lo").err(), r#"open a packet socket on "lo": CAP_NET_RAW"#);
        check(netdev::set_up("lo").err(), r#"set up network interface "lo": CAP_NET_ADMIN"#);
    });
}

#[test]
fn deleted_tap_is_removed_and_a_down_one_is_not() {
    in_namespaces("deleted_tap_is_removed_and_a_down_one_is_not", || {
        let bridge = Bridge::start(Config::default()).unwrap();
        let (a, tap_a) = tap_host(1);
        let (b, tap_b) = tap_host(2);
        let name_a = tap_a.name().to_owned();
        let name_b = tap_b.name().to_owned();
        bridge.attach("a", Box::new(tap_a)).unwrap();
        bridge.attach("b", Box::new(tap_b)).unwrap();
        ping(&a, "10.0.0.2");
        let down = name_b.clone();
        b.run(move || sh(&format!("ip link set {down} down")));
        a.run(move || sh("ping -n -c 1 -W 0.1 10.0.0.2 || true"));
        until("a drop for the interface being down", || {
            let ports = bridge.ports().unwrap();
            (ports[1].counters.dropped(bridge::DropReason::Down) > 0).then_some(())
        });
        b.run(move || sh(&format!("ip link set {name_b} up")));
        ping(&a, "10.0.0.2");
        a.run(move || sh(&format!("ip link delete {name_a}")));
        until("removal of the port", || (bridge.ports().unwrap().len() == 1).then_some(()));
    });
}
