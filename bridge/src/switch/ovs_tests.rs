//! What Open vSwitch's test vectors say of learning and mirrors: tests/ofproto-dpif.at of github.com/openvswitch/ovs (Apache-2.0), each test by its
//! name there, as tables. Our ports 1 to 6 are theirs; their bridge's own port, 100, is none of ours.

use std::time::Duration;

use super::{Switch, SwitchMirror, Turn};
use crate::fdb::{Kind, Limits, Mac, PortId};
use crate::{Batch, Caps, PortSettings};

const BROADCAST: [u8; 6] = [0xff; 6];

const fn mac(e: u8, f: u8) -> [u8; 6] {
    [0x50, 0x54, 0, 0, e, f]
}

fn switch(limits: Limits, ports: u16) -> Switch {
    let mut switch = Switch::new(limits, 7);
    for port in 1..=ports {
        switch.attach(PortId(port), Caps::plain(1500), &PortSettings::default(), Duration::ZERO);
    }
    switch
}

/// The ports that an ARP packet, in this VLAN if any, is sent to.
fn sent(
    switch: &mut Switch,
    from: u16,
    (source, to): ([u8; 6], [u8; 6]),
    vlan: Option<u8>,
    now_s: u64,
) -> Vec<u16> {
    let tag: Vec<u8> = vlan.into_iter().flat_map(|vlan| [0x81, 0, 0, vlan]).collect();
    let mut batch = Batch::new(1);
    batch.slot().unwrap().set_slice(&[&to[..], &source, &tag, &[8, 6], &[0; 46]].concat());
    switch.forward(PortId(from), batch.frames(), Turn::at(Duration::from_secs(now_s)));
    let mut ports: Vec<_> =
        switch.egresses().filter(|egress| !egress.batch.is_empty()).map(|egress| egress.port.0).collect();
    ports.sort();
    ports
}

/// The entries, as `fdb/show` sorts them: port, and the last two bytes of the address.
fn entries(switch: &Switch, now_s: u32) -> Vec<(u16, u8, u8)> {
    let entries = switch.fdb().unwrap().entries(now_s);
    let mut rows: Vec<_> = entries
        .map(|entry| (entry.port.0, entry.station.mac().bytes()[4], entry.station.mac().bytes()[5]))
        .collect();
    rows.sort();
    rows
}

/// "ofproto-dpif - MAC learning".
#[test]
fn mac_learning() {
    let mut switch = switch(Limits::default(), 3);
    for (from, addresses, expected, table) in [
        (3, (mac(0, 5), BROADCAST), vec![1, 2], vec![(3, 0, 5)]),
        (1, (mac(0, 6), mac(0, 5)), vec![3], vec![(1, 0, 6), (3, 0, 5)]),
        (2, (mac(0, 5), BROADCAST), vec![1, 3], vec![(1, 0, 6), (2, 0, 5)]),
    ] {
        assert_eq!(sent(&mut switch, from, addresses, None, 0), expected);
        assert_eq!(entries(&switch, 0), table);
    }
    switch.detach(PortId(1));
    assert_eq!(entries(&switch, 0), [(2, 0, 5)]);
}

/// "ofproto-dpif - MAC table overflow". There the oldest address of a port makes room for its next one; here, as in Linux's bridge
/// (bridge_fdb_learning_limit.sh), the next one is not learned, and its frames are forwarded.
#[test]
fn mac_table_overflow() {
    let limits = Limits { entries: 10, entries_per_port: 10, age_s: 300 };
    let mut switch = switch(limits, 3);
    let first: Vec<_> = (0..10).map(|n| (3, 0, n)).collect();
    for n in 0..10 {
        assert_eq!(sent(&mut switch, 3, (mac(0, n), BROADCAST), None, n.into()), [1, 2]);
    }
    assert_eq!(entries(&switch, 10), first);
    assert_eq!(sent(&mut switch, 3, (mac(0, 0x10), BROADCAST), None, 10), [1, 2]);
    assert_eq!(entries(&switch, 10), first);
    assert_eq!(sent(&mut switch, 1, (mac(1, 1), mac(0, 0x10)), None, 10), [2, 3]);
    assert_eq!(
        entries(&switch, 10).iter().filter(|(port, ..)| *port == 1).count(),
        1,
        "another port has a place"
    );
}

/// "ofproto-dpif - MAC table overflow fairness": five ports have two addresses each, and the table is full; a sixth has sixteen. There it ends with
/// three, as it takes places while no port has more than it; here with one, as it takes them while one has more than it would have then. No
/// port has none either way, and the numbers differ by one at most.
#[test]
fn mac_table_overflow_fairness() {
    let limits = Limits { entries: 10, entries_per_port: 10, age_s: 300 };
    let mut switch = switch(limits, 6);
    for n in 0..10 {
        sent(&mut switch, u16::from(n / 2) + 1, (mac(0, n), BROADCAST), None, n.into());
    }
    let two_each: Vec<_> = (0..10).map(|n| (u16::from(n / 2) + 1, 0, n)).collect();
    assert_eq!(entries(&switch, 10), two_each);
    for n in 0..16 {
        sent(&mut switch, 6, (mac(n, 0xff), BROADCAST), None, 10 + u64::from(n));
    }
    let entries = entries(&switch, 30);
    let mut counts: Vec<_> =
        (1..=6).map(|port| entries.iter().filter(|(of, ..)| *of == port).count()).collect();
    counts.sort();
    assert_eq!(counts, [1, 1, 2, 2, 2, 2]);
}

/// The tests of `fdb/add`: a static address stays at its port while learned ones age out, whoever sends from it, and is deleted by name.
#[test]
fn static_mac() {
    let mut switch = switch(Limits::default(), 3);
    let station = |f| (Mac::new(mac(0, f)), None);
    switch.fdb_add(station(1), (PortId(1), Kind::Static), false, 0).unwrap();
    sent(&mut switch, 2, (mac(0, 2), BROADCAST), None, 0);
    assert_eq!(entries(&switch, 0), [(1, 0, 1), (2, 0, 2)]);
    assert_eq!(sent(&mut switch, 3, (mac(0, 1), BROADCAST), None, 10), [0; 0], "there it is forwarded");
    assert_eq!(entries(&switch, 10), [(1, 0, 1), (2, 0, 2)]);
    assert_eq!(entries(&switch, 300), [(1, 0, 1)]);
    switch.fdb_delete(station(1), PortId(1), 300).unwrap();
    assert_eq!(entries(&switch, 300), []);
}

fn mirror(all: bool, src: &[u16], dst: &[u16], vlans: &[u16]) -> SwitchMirror {
    let ports = |ports: &[u16]| ports.iter().copied().map(PortId).collect();
    let (src, dst) = (ports(src), ports(dst));
    SwitchMirror { all, src, dst, vlans: vlans.to_vec(), output: PortId(3), frames: 0, bytes: 0 }
}

/// "ofproto-dpif - mirroring, select_all", "select_src", "select_dst" and "select_vlan", with port 3 as the output: the ports that a frame from
/// port 1 to the station at port 2, and one back, is sent to.
#[test]
fn mirroring() {
    let (one, two) = (mac(0, 5), mac(0, 7));
    for (name, mirror, there, back) in [
        ("select_all", mirror(true, &[], &[], &[]), vec![2, 3], vec![1, 3]),
        ("select_src", mirror(false, &[1], &[], &[]), vec![2, 3], vec![1]),
        ("select_dst", mirror(false, &[], &[2], &[]), vec![2, 3], vec![1]),
        ("select_vlan", mirror(true, &[], &[], &[11]), vec![2], vec![1]),
    ] {
        let mut switch = switch(Limits::default(), 3);
        sent(&mut switch, 1, (one, BROADCAST), None, 0);
        sent(&mut switch, 2, (two, BROADCAST), None, 0);
        switch.add_mirror(mirror);
        assert_eq!(sent(&mut switch, 1, (one, two), None, 0), there, "{name}");
        assert_eq!(sent(&mut switch, 2, (two, one), None, 0), back, "{name}");
        if name == "select_vlan" {
            assert_eq!(sent(&mut switch, 1, (one, two), Some(10), 0), [2]);
            assert_eq!(sent(&mut switch, 1, (one, two), Some(11), 0), [2, 3]);
        }
    }
}
