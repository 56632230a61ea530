//! VLANs of a switch: who is sent a frame, with which tag, and where its source is learned.
//!
//! The cases of a bridge that is aware of VLANs are those of Linux's selftests net/forwarding/bridge_vlan_aware.sh and
//! bridge_vlan_unaware.sh, by behaviour.

use std::time::Duration;

use super::{Egress, Switch, Turn};
use crate::fdb::{Limits, Mac, PortId};
use crate::{Batch, Caps, DropReason, Frame, Lock, PortSettings, Vlans};

const START: Turn = Turn::at(Duration::ZERO);
const BROADCAST: [u8; 6] = [0xff; 6];

const fn mac(n: u8) -> [u8; 6] {
    [2, 0, 0, 0, 0, n]
}

fn of(vlans: &str) -> PortSettings {
    let vlans = match vlans {
        "trunk" => Vlans::trunk(),
        "untagged" => Vlans::untagged(),
        given => given.parse().unwrap(),
    };
    PortSettings { vlans, ..PortSettings::default() }
}

fn switch(ports: &[&str]) -> Switch {
    let mut switch = Switch::new(Limits::default(), 42);
    for (port, vlans) in ports.iter().enumerate() {
        switch.attach(PortId(port as u16), Caps::plain(1500), &of(vlans), Duration::ZERO);
    }
    switch
}

/// A frame with these VLANs' tags, 60 bytes without them.
fn frame(to: [u8; 6], from: [u8; 6], tags: &[u16]) -> Vec<u8> {
    let tags: Vec<u8> = tags.iter().flat_map(|vlan| [[0x81, 0], vlan.to_be_bytes()].concat()).collect();
    [&to[..], &from, &tags, &[0x88, 0xb5], &[0; 46]].concat()
}

/// Each port that is sent the frame, and the VLAN of the tag that it is sent.
fn sent(switch: &mut Switch, from: u16, bytes: &[u8]) -> Vec<(u16, Option<u16>)> {
    let mut batch = Batch::new(1);
    batch.slot().unwrap().set_slice(bytes);
    switch.forward(PortId(from), batch.frames(), START);
    let mut into = Batch::new(1);
    let mut all = Vec::new();
    for Egress { port, batch: frames, has_other_tags, .. } in switch.egresses() {
        let frames = if has_other_tags { switch.retag(port, &batch, &mut into) } else { frames.view(&batch) };
        all.extend(frames.iter().map(|frame| (port.0, tag(frame))));
    }
    all
}

fn tag(frame: &Frame) -> Option<u16> {
    let head = frame.head();
    (head[12..14] == [0x81, 0]).then(|| u16::from_be_bytes([head[14], head[15]]))
}

fn dropped(switch: &mut Switch, from: u16, bytes: &[u8]) -> u64 {
    let summary = switch.forward(PortId(from), &[Frame::from_slice(bytes)], START);
    summary.dropped(DropReason::Vlan)
}

#[test]
fn frame_reaches_its_vlan_alone_with_the_tag_that_each_port_has() {
    let mut switch = switch(&["10", "10", "20", "10p/20", "20p/10", "trunk", "untagged"]);
    let all = |switch: &mut Switch, from, tags: &[u16]| sent(switch, from, &frame(BROADCAST, mac(1), tags));
    let ten = vec![(1, None), (3, None), (4, Some(10)), (5, Some(10))];
    assert_eq!(all(&mut switch, 0, &[]), ten);
    assert_eq!(all(&mut switch, 0, &[0]), ten, "a priority alone");
    assert_eq!(all(&mut switch, 2, &[]), [(3, Some(20)), (4, None), (5, Some(20))]);
    assert_eq!(all(&mut switch, 3, &[]), [(0, None), (1, None), (4, Some(10)), (5, Some(10))]);
    assert_eq!(all(&mut switch, 3, &[20]), [(2, None), (4, None), (5, Some(20))]);
    assert_eq!(all(&mut switch, 5, &[10]), [(0, None), (1, None), (3, None), (4, Some(10))]);
    assert_eq!(all(&mut switch, 5, &[30]), [], "nobody else is in it");
    assert_eq!(all(&mut switch, 5, &[]), [(6, None)], "VLANs that say nothing have one of their own");
    assert_eq!(all(&mut switch, 6, &[]), [(5, None)]);
    for (port, vlans) in [(5, "10t/20t"), (6, "none")] {
        switch.set_vlans(PortId(port), vlans.parse().unwrap());
    }
    assert_eq!(all(&mut switch, 5, &[]), [], "it takes tagged frames alone");
    assert_eq!(all(&mut switch, 6, &[]), []);
    assert_eq!(all(&mut switch, 0, &[]), ten, "and is sent those");
    assert_eq!(all(&mut switch, 5, &[10, 20]), [(4, Some(10))], "the second tag never becomes the first");
}

#[test]
fn frame_of_another_vlan_is_dropped_where_it_comes_from() {
    let mut switch = switch(&["10", "10p/20", "untagged", "trunk"]);
    for (port, tags) in [
        (0, vec![10]),
        (0, vec![20]),
        (1, vec![30]),
        (1, vec![4095]),
        (2, vec![10]),
        (3, vec![4095]),
        (0, vec![0, 20]),
        (3, vec![0, 20]),
    ] {
        assert_eq!(dropped(&mut switch, port, &frame(BROADCAST, mac(1), &tags)), 1, "{port} {tags:?}");
    }
    assert!(switch.fdb().unwrap().is_empty(), "nothing was learned of them");
}

/// As Linux's bridge does (`other_tpid` of its selftest bridge_vlan_aware.sh).
#[test]
fn providers_tag_is_no_tag_and_stays_as_it_is() {
    let mut switch = switch(&["10", "10", "20", "10p/20", "20p/10", "20t"]);
    let mut of_provider = frame(BROADCAST, mac(1), &[20, 20]);
    of_provider[12..14].copy_from_slice(&[0x88, 0xa8]);
    assert_eq!(sent(&mut switch, 0, &of_provider), [(1, None), (3, None), (4, Some(10))]);
    assert_eq!(dropped(&mut switch, 5, &of_provider), 1, "no frames without a tag");
}

#[test]
fn stations_are_learned_in_their_vlan() {
    let mut switch = switch(&["10", "20", "10p/20", "10p/20"]);
    sent(&mut switch, 0, &frame(BROADCAST, mac(1), &[]));
    sent(&mut switch, 1, &frame(BROADCAST, mac(1), &[]));
    assert_eq!(switch.fdb().unwrap().len(), 2, "one address in two VLANs");
    assert_eq!(sent(&mut switch, 2, &frame(mac(1), mac(2), &[])), [(0, None)]);
    assert_eq!(sent(&mut switch, 2, &frame(mac(1), mac(2), &[20])), [(1, None)]);
    // What was learned in one VLAN is not known in another.
    assert_eq!(sent(&mut switch, 1, &frame(mac(9), mac(1), &[])), [(2, Some(20)), (3, Some(20))]);
}

#[test]
fn own_address_is_known_in_the_ports_vlans_and_may_be_anothers_elsewhere() {
    let mut switch = switch(&["10p/20/30"]);
    let guest = |vlans| PortSettings { address: Some(Mac::new(mac(1))), lock: Lock::Mac, ..of(vlans) };
    for (port, vlans) in [(1, "10"), (2, "20"), (3, "10")] {
        switch.attach(PortId(port), Caps::plain(1500), &guest(vlans), Duration::ZERO);
    }
    let has = |switch: &Switch| [1, 2, 3].map(|port| switch.has_address(PortId(port), Mac::new(mac(1))));
    assert_eq!(has(&switch), [true, true, false]);
    assert_eq!(sent(&mut switch, 0, &frame(mac(1), mac(9), &[])), [(1, None)]);
    assert_eq!(sent(&mut switch, 0, &frame(mac(1), mac(9), &[20])), [(2, None)]);
    switch.set_vlans(PortId(1), "30".parse().unwrap());
    assert_eq!(has(&switch), [true, true, true], "the other one has waited for it");
    assert_eq!(sent(&mut switch, 0, &frame(mac(1), mac(9), &[])), [(3, None)]);
    assert_eq!(sent(&mut switch, 0, &frame(mac(1), mac(9), &[30])), [(1, None)]);
    // A port in more VLANs than the table has places for is learned as any other.
    let many = PortSettings { address: Some(Mac::new(mac(7))), ..guest("10p/11-200") };
    switch.attach(PortId(4), Caps::plain(1500), &many, Duration::ZERO);
    assert_eq!(sent(&mut switch, 4, &frame(mac(9), mac(7), &[30])), [(0, Some(30))]);
    assert_eq!(sent(&mut switch, 0, &frame(mac(7), mac(9), &[30])), [(4, Some(30))]);
    assert_eq!(sent(&mut switch, 0, &frame(mac(7), mac(9), &[])), [(4, None)]);
}

#[test]
fn switch_without_given_vlans_passes_every_tag() {
    let mut switch = switch(&["trunk", "untagged", "10"]);
    let tagged = frame(BROADCAST, mac(1), &[4095, 7]);
    assert_eq!(dropped(&mut switch, 1, &tagged), 1);
    switch.detach(PortId(2));
    assert_eq!(sent(&mut switch, 1, &tagged), [(0, Some(4095))]);
    switch.set_vlans(PortId(1), "5".parse().unwrap());
    assert_eq!(dropped(&mut switch, 1, &tagged), 1);
}

#[test]
fn frame_that_its_tag_makes_too_long_is_not_sent() {
    let mut switch = switch(&["10", "10p/20", "20p/10"]);
    let mut long = frame(BROADCAST, mac(1), &[]);
    long.resize(1518, 0);
    assert_eq!(sent(&mut switch, 0, &long), [(1, None)]);
    let too_long: Vec<_> = switch.egresses().map(|egress| (egress.port.0, egress.too_long)).collect();
    assert_eq!(too_long, [(1, 0), (2, 1)]);
}
