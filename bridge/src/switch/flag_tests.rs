//! Flags of a switch's ports. The cases are those of Linux's selftests net/forwarding/bridge_port_isolation.sh and of the
//! flooding and learning parts of bridge_vlan_unaware.sh, by behaviour.

use std::time::Duration;

use super::{Switch, Turn};
use crate::fdb::{Limits, Mac, PortId};
use crate::{Batch, Caps, DropReason, Flag, Flags, PortSettings};

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
