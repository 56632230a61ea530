//! Flags of a switch's ports. The cases are those of Linux's selftests net/forwarding/bridge_port_isolation.sh, bridge_locked_port.sh and of the
//! flooding and learning parts of bridge_vlan_unaware.sh, by behaviour.

use std::time::Duration;

use super::{Switch, Turn};
use crate::fdb::{Kind, Limits, Mac, PortId};
use crate::{Batch, BridgeSetting, Caps, DropReason, Flag, Flags, GroupFwdMask, PortSettings};

const START: Turn = Turn::at(Duration::ZERO);
const BROADCAST: [u8; 6] = [0xff; 6];
const MULTICAST: [u8; 6] = [1, 0, 0x5e, 0, 0, 1];

const fn mac(n: u8) -> [u8; 6] {
    [2, 0, 0, 0, 0, n]
}

fn flags(changed: &[(Flag, bool)]) -> Flags {
    let mut flags = Flags::default();
    changed.iter().for_each(|(flag, value)| flags.set(*flag, *value));
    flags
}

/// A switch of four ports, of which these have other flags.
fn switch(changed: &[(u16, Flag, bool)]) -> Switch {
    let mut switch = Switch::new(Limits::default(), 42);
    for port in 0..4 {
        let its: Vec<_> =
            changed.iter().filter(|(of, ..)| *of == port).map(|(_, flag, on)| (*flag, *on)).collect();
        let settings = PortSettings { flags: flags(&its), ..PortSettings::default() };
        switch.attach(PortId(port), Caps::plain(1500), &settings, Duration::ZERO);
    }
    switch
}

/// The ports that a frame is sent to.
fn sent(switch: &mut Switch, from: u16, to: [u8; 6], source: [u8; 6]) -> Vec<u16> {
    let mut batch = Batch::new(1);
    batch.slot().unwrap().set_slice(&[&to[..], &source, &[0x88, 0xb5], &[0; 46]].concat());
    switch.forward(PortId(from), batch.frames(), START);
    let egresses = switch.egresses().filter(|egress| !egress.batch.is_empty());
    egresses.map(|egress| egress.port.0).collect()
}

#[test]
fn isolated_ports_reach_the_others_alone() {
    let mut switch = switch(&[(0, Flag::Isolated, true), (1, Flag::Isolated, true)]);
    for (port, n) in [(0, 1), (1, 2), (2, 3)] {
        let reached = sent(&mut switch, port, BROADCAST, mac(n));
        assert_eq!(reached, [vec![2, 3], vec![2, 3], vec![0, 1, 3]][usize::from(port)]);
    }
    assert_eq!(sent(&mut switch, 0, mac(2), mac(1)), [0; 0], "a station that is known");
    assert_eq!(sent(&mut switch, 0, mac(9), mac(1)), [2, 3], "one that is not");
    assert_eq!(sent(&mut switch, 0, mac(3), mac(1)), [2]);
    assert_eq!(sent(&mut switch, 2, mac(1), mac(3)), [0]);
    switch.set_flags(PortId(1), Flags::default());
    assert_eq!(sent(&mut switch, 0, mac(2), mac(1)), [1]);
}

#[test]
fn port_is_flooded_with_what_its_flags_say() {
    let kinds = [(mac(9), Flag::Flood), (MULTICAST, Flag::McastFlood), (BROADCAST, Flag::BcastFlood)];
    for (_, off) in kinds {
        let mut switch = switch(&[(1, off, false)]);
        for (to, flag) in kinds {
            let expected = if flag == off { vec![2, 3] } else { vec![1, 2, 3] };
            assert_eq!(sent(&mut switch, 0, to, mac(1)), expected, "{off:?} off, {flag:?}");
        }
        sent(&mut switch, 1, BROADCAST, mac(2));
        assert_eq!(sent(&mut switch, 0, mac(2), mac(1)), [1], "it is known");
    }
}

#[test]
fn port_without_learning_is_flooded_and_cannot_send_from_anothers_address() {
    let mut switch = switch(&[(1, Flag::Learning, false)]);
    sent(&mut switch, 1, BROADCAST, mac(2));
    assert_eq!(sent(&mut switch, 0, mac(2), mac(1)), [1, 2, 3]);
    assert!(switch.fdb().unwrap().entries(0).all(|entry| entry.port == PortId(0)));
    let own = PortSettings { address: Some(Mac::new(mac(7))), ..PortSettings::default() };
    switch.attach(PortId(4), Caps::plain(1500), &own, Duration::ZERO);
    let mut batch = Batch::new(1);
    batch.slot().unwrap().set_slice(&[&BROADCAST[..], &mac(7), &[0; 48]].concat());
    let summary = switch.forward(PortId(1), batch.frames(), START);
    assert_eq!(summary.dropped(DropReason::Sticky), 1);
}

#[test]
fn frames_go_back_to_a_port_with_hairpin_alone() {
    let mut switch = switch(&[(1, Flag::Hairpin, true)]);
    assert_eq!(sent(&mut switch, 0, BROADCAST, mac(1)), [1, 2, 3]);
    assert_eq!(sent(&mut switch, 0, mac(1), mac(2)), [0; 0]);
    assert_eq!(sent(&mut switch, 1, BROADCAST, mac(3)), [0, 1, 2, 3]);
    assert_eq!(sent(&mut switch, 1, mac(3), mac(4)), [1]);
}

/// Why a frame is dropped.
fn dropped(switch: &mut Switch, from: u16, to: [u8; 6], source: [u8; 6], now_s: u64) -> Option<DropReason> {
    let mut batch = Batch::new(1);
    batch.slot().unwrap().set_slice(&[&to[..], &source, &[0x88, 0xb5], &[0; 46]].concat());
    let summary = switch.forward(PortId(from), batch.frames(), Turn::at(Duration::from_secs(now_s)));
    summary.drops().find(|(_, frames)| *frames > 0).map(|(reason, _)| reason)
}

/// As in bridge_locked_port.sh: a station that no entry says is there sends nothing, and one that was learned before, or was given, does.
#[test]
fn locked_port_sends_from_known_stations_alone() {
    let locked = Some(DropReason::Locked);
    let mut switch = switch(&[]);
    sent(&mut switch, 1, BROADCAST, mac(1));
    sent(&mut switch, 2, BROADCAST, mac(3));
    switch.set_flags(PortId(1), flags(&[(Flag::Locked, true)]));
    assert_eq!(dropped(&mut switch, 1, BROADCAST, mac(2), 0), locked);
    assert_eq!(dropped(&mut switch, 1, BROADCAST, mac(3), 0), locked, "it is elsewhere, and does not move");
    assert_eq!(
        dropped(&mut switch, 1, BROADCAST, mac(1), 299),
        None,
        "it was learned before, and is kept by what it sends"
    );
    assert_eq!(dropped(&mut switch, 1, BROADCAST, mac(1), 598), None);
    assert_eq!(dropped(&mut switch, 1, BROADCAST, mac(1), 898), locked, "it has expired");
    switch.fdb_add((Mac::new(mac(2)), None), (PortId(1), Kind::Static), false, 898).unwrap();
    assert_eq!(dropped(&mut switch, 1, BROADCAST, mac(2), 9999), None);
    assert_eq!(sent(&mut switch, 0, mac(2), mac(9)), [1], "it is sent all frames");
    switch.fdb_delete((Mac::new(mac(2)), None), PortId(1), 9999).unwrap();
    assert_eq!(dropped(&mut switch, 1, BROADCAST, mac(2), 9999), locked);
    assert!(switch.fdb().unwrap().entries(9999).all(|entry| entry.port != PortId(1)), "none was learned");
}

#[test]
fn locked_port_without_learning_lets_its_stations_expire() {
    let mut switch = switch(&[]);
    sent(&mut switch, 1, BROADCAST, mac(1));
    switch.set_flags(PortId(1), flags(&[(Flag::Locked, true), (Flag::Learning, false)]));
    assert_eq!(dropped(&mut switch, 1, BROADCAST, mac(1), 299), None);
    assert_eq!(dropped(&mut switch, 1, BROADCAST, mac(1), 300), Some(DropReason::Locked));
}

#[test]
fn locked_port_passes_link_local_groups_that_are_forwarded_and_its_own_station() {
    const EAPOL: [u8; 6] = [1, 0x80, 0xc2, 0, 0, 3];
    let mut switch = switch(&[(1, Flag::Locked, true)]);
    assert_eq!(dropped(&mut switch, 1, EAPOL, mac(1), 0), Some(DropReason::Reserved));
    switch.set(BridgeSetting::GroupFwdMask(GroupFwdMask::new(1 << 3).unwrap()));
    assert_eq!(sent(&mut switch, 1, EAPOL, mac(1)), [0, 2, 3]);
    assert!(switch.fdb().unwrap().is_empty(), "the station is not learned by that");
    assert_eq!(dropped(&mut switch, 1, [1, 0x80, 0xc2, 0, 0, 0], mac(1), 0), Some(DropReason::Locked));
    let own = PortSettings {
        address: Some(Mac::new(mac(7))),
        flags: flags(&[(Flag::Locked, true)]),
        ..PortSettings::default()
    };
    switch.attach(PortId(4), Caps::plain(1500), &own, Duration::ZERO);
    assert_eq!(dropped(&mut switch, 4, BROADCAST, mac(7), 0), None);
    assert_eq!(dropped(&mut switch, 4, BROADCAST, mac(8), 0), Some(DropReason::Locked));
}

#[test]
fn bpdus_of_a_guarded_port_are_dropped_and_others_are_sent_to_it() {
    let mut switch = switch(&[(1, Flag::Guard, true)]);
    for to in [[1, 0x80, 0xc2, 0, 0, 0], [1, 0, 0x0c, 0xcc, 0xcc, 0xcd]] {
        assert_eq!(dropped(&mut switch, 1, to, mac(1), 0), Some(DropReason::Guard));
        assert_eq!(sent(&mut switch, 0, to, mac(2)), [1, 2, 3]);
    }
    assert_eq!(sent(&mut switch, 1, BROADCAST, mac(1)), [0, 2, 3], "the port is not disabled");
}
