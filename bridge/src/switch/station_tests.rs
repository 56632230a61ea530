//! Entries that a switch's forwarding database is given, and settings of the whole. The cases are those of Linux's selftests
//! net/forwarding/bridge_sticky_fdb.sh and bridge_fdb_learning_limit.sh, by behaviour.

use std::time::Duration;

use super::{Switch, Turn};
use crate::fdb::{FdbError, Kind, Limits, Mac, PortId};
use crate::{Batch, BridgeSetting, Caps, DropReason, GroupFwdMask, PortSettings, Vlans};

const BROADCAST: [u8; 6] = [0xff; 6];

const fn mac(n: u8) -> [u8; 6] {
    [2, 0, 0, 0, 0, n]
}

/// A switch of four ports; the last one has an address of its own.
fn switch(vlans: [&str; 4]) -> Switch {
    let mut switch = Switch::new(Limits::default(), 42);
    for (port, vlans) in (0..).zip(vlans) {
        let vlans = if vlans.is_empty() { Vlans::untagged() } else { vlans.parse().unwrap() };
        let address = (port == 3).then(|| Mac::new(mac(0x33)));
        let settings = PortSettings { vlans, address, ..PortSettings::default() };
        switch.attach(PortId(port), Caps::plain(1500), &settings, Duration::ZERO);
    }
    switch
}

/// The ports that a frame is sent to, or why it is dropped.
fn sent(
    switch: &mut Switch,
    from: u16,
    to: [u8; 6],
    source: [u8; 6],
    now_s: u64,
) -> Result<Vec<u16>, DropReason> {
    let mut batch = Batch::new(1);
    batch.slot().unwrap().set_slice(&[&to[..], &source, &[0x88, 0xb5], &[0; 46]].concat());
    let summary = switch.forward(PortId(from), batch.frames(), Turn::at(Duration::from_secs(now_s)));
    match summary.drops().find(|(_, frames)| *frames > 0) {
        Some((reason, _)) => Err(reason),
        None => Ok(switch
            .egresses()
            .filter(|egress| !egress.batch.is_empty())
            .map(|egress| egress.port.0)
            .collect()),
    }
}

fn give(switch: &mut Switch, n: u8, vlan: Option<u16>, port: u16, kind: Kind) -> Result<(), FdbError> {
    switch.fdb_add((Mac::new(mac(n)), vlan), (PortId(port), kind), false, 0)
}

/// The entries, as `MAC VLAN PORT KIND`.
fn entries(switch: &Switch) -> Vec<String> {
    let text = |entry: crate::fdb::Entry| {
        let (station, kind) = (entry.station, entry.kind.name());
        format!("{:x} {} {} {kind}", station.mac().bytes()[5], station.vlan(), entry.port.0)
    };
    let mut all: Vec<_> = switch.fdb().unwrap().entries(0).map(text).collect();
    all.sort();
    all
}

#[test]
fn sticky_and_static_stations_stay_and_dynamic_ones_move() {
    let mut switch = switch([""; 4]);
    for (n, kind) in [(1, Kind::Static), (2, Kind::Sticky), (4, Kind::Dynamic)] {
        assert_eq!(give(&mut switch, n, None, 0, kind), Ok(()));
        assert_eq!(sent(&mut switch, 2, mac(n), mac(9), 0), Ok(vec![0]), "known before its first frame");
    }
    assert_eq!(sent(&mut switch, 1, BROADCAST, mac(1), 1), Err(DropReason::Sticky));
    assert_eq!(sent(&mut switch, 1, BROADCAST, mac(2), 1), Err(DropReason::Sticky));
    assert_eq!(sent(&mut switch, 1, BROADCAST, mac(4), 1), Ok(vec![0, 2, 3]));
    assert_eq!(
        entries(&switch),
        ["1 0 0 static", "2 0 0 sticky", "33 0 3 own", "4 0 1 dynamic", "9 0 2 learned"]
    );
    // All but the first two expire; a sticky one that is not seen there is as any other.
    assert_eq!(sent(&mut switch, 2, mac(1), mac(9), 400), Ok(vec![0]));
    assert_eq!(sent(&mut switch, 2, mac(2), mac(9), 400), Ok(vec![0, 1, 3]));
    assert_eq!(sent(&mut switch, 1, BROADCAST, mac(2), 400), Ok(vec![0, 2, 3]));
    assert_eq!(sent(&mut switch, 2, mac(2), mac(9), 400), Ok(vec![1]));
}

#[test]
fn entry_is_given_in_the_named_vlan_or_in_all_of_the_ports() {
    let mut switch = switch(["10", "10p/20", "", "10"]);
    assert_eq!(give(&mut switch, 1, Some(20), 0, Kind::Static), Err(FdbError::Vlan));
    assert_eq!(give(&mut switch, 1, Some(20), 1, Kind::Static), Ok(()));
    assert_eq!(give(&mut switch, 1, None, 1, Kind::Static), Err(FdbError::Exists));
    assert_eq!(entries(&switch), ["1 20 1 static", "33 10 3 own"], "in none of them");
    assert_eq!(give(&mut switch, 2, None, 1, Kind::Static), Ok(()));
    assert_eq!(give(&mut switch, 3, None, 2, Kind::Static), Ok(()));
    assert_eq!(sent(&mut switch, 0, mac(2), mac(9), 0), Ok(vec![1]));
    let all =
        ["1 20 1 static", "2 10 1 static", "2 20 1 static", "3 0 2 static", "33 10 3 own", "9 10 0 learned"];
    assert_eq!(entries(&switch), all);
    // The port leaves VLAN 20; what was given in VLAN 10 stays.
    switch.set_vlans(PortId(1), "10".parse().unwrap());
    assert_eq!(entries(&switch), ["2 10 1 static", "3 0 2 static", "33 10 3 own", "9 10 0 learned"]);
    switch.detach(PortId(1));
    assert_eq!(entries(&switch), ["3 0 2 static", "33 10 3 own", "9 10 0 learned"]);
}

#[test]
fn entries_are_deleted_and_flushed_but_for_ports_own_addresses() {
    let mut switch = switch([""; 4]);
    let delete = |switch: &mut Switch, n, port| switch.fdb_delete((Mac::new(mac(n)), None), PortId(port), 0);
    give(&mut switch, 1, None, 0, Kind::Static).unwrap();
    give(&mut switch, 2, None, 1, Kind::Sticky).unwrap();
    sent(&mut switch, 1, BROADCAST, mac(3), 0).unwrap();
    assert_eq!(give(&mut switch, 0x33, None, 0, Kind::Static), Err(FdbError::Own));
    assert_eq!(delete(&mut switch, 0x33, 3), Err(FdbError::Own));
    assert_eq!(delete(&mut switch, 1, 1), Err(FdbError::NoSuchEntry));
    assert_eq!(delete(&mut switch, 1, 0), Ok(()));
    assert_eq!(delete(&mut switch, 1, 0), Err(FdbError::NoSuchEntry));
    assert_eq!(switch.fdb_flush(|_, port, kind| port == PortId(1) && kind == Kind::Learned), 1);
    assert_eq!(entries(&switch), ["2 0 1 sticky", "33 0 3 own"]);
    assert_eq!(switch.fdb_flush(|_, _, _| true), 1);
    assert_eq!(entries(&switch), ["33 0 3 own"]);
}

#[test]
fn address_that_was_given_elsewhere_is_the_ports_own_once_that_entry_is_deleted() {
    let mut switch = switch([""; 4]);
    give(&mut switch, 7, None, 0, Kind::Static).unwrap();
    let own = PortSettings { address: Some(Mac::new(mac(7))), ..PortSettings::default() };
    switch.attach(PortId(4), Caps::plain(1500), &own, Duration::ZERO);
    assert!(!switch.has_address(PortId(4), Mac::new(mac(7))));
    switch.fdb_delete((Mac::new(mac(7)), None), PortId(0), 0).unwrap();
    assert!(switch.has_address(PortId(4), Mac::new(mac(7))));
}

#[test]
fn learned_entries_are_limited_and_given_ones_are_not_counted() {
    let mut switch = switch([""; 4]);
    switch.set(BridgeSetting::FdbMaxLearned(1));
    for n in 1..5 {
        give(&mut switch, n, None, 0, Kind::Static).unwrap();
        give(&mut switch, 0x10 + n, None, 0, Kind::Dynamic).unwrap();
    }
    let n_learned = |switch: &Switch| switch.info().unwrap().fdb_n_learned;
    assert_eq!(n_learned(&switch), 0);
    assert!(sent(&mut switch, 1, BROADCAST, mac(0x20), 0).is_ok());
    assert!(sent(&mut switch, 1, BROADCAST, mac(0x21), 0).is_ok(), "it is forwarded, and not learned");
    assert_eq!((n_learned(&switch), entries(&switch).len()), (1, 10));
    // One that was learned and is replaced is counted no more.
    let mac_20 = Mac::new(mac(0x20));
    switch.fdb_add((mac_20, None), (PortId(1), Kind::Static), true, 0).unwrap();
    assert_eq!(n_learned(&switch), 0);
    switch.set(BridgeSetting::FdbMaxLearned(8192));
    switch.set(BridgeSetting::AgeingTime(10));
    assert!(sent(&mut switch, 1, BROADCAST, mac(0x22), 0).is_ok());
    assert_eq!(sent(&mut switch, 2, mac(0x22), mac(0x23), 9), Ok(vec![1]));
    assert_eq!(sent(&mut switch, 2, mac(0x22), mac(0x23), 10), Ok(vec![0, 1, 3]));
}

#[test]
fn link_local_groups_of_the_mask_are_forwarded() {
    let mut switch = switch([""; 4]);
    let group = |x| [1, 0x80, 0xc2, 0, 0, x];
    switch.set(BridgeSetting::GroupFwdMask(GroupFwdMask::new(0x4008).unwrap()));
    for x in 0..16 {
        let expected = if [0, 3, 14].contains(&x) { Ok(vec![1, 2, 3]) } else { Err(DropReason::Reserved) };
        assert_eq!(sent(&mut switch, 0, group(x), mac(1), 0), expected, "-{x:02X}");
    }
    assert_eq!(switch.info().unwrap().group_fwd_mask.bits(), 0x4008);
    assert_eq!(sent(&mut switch, 0, [1, 0x80, 0xc2, 0, 0, 0x10], mac(1), 0), Ok(vec![1, 2, 3]));
}
