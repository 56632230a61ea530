//! Compares the switch with a simple model under random frames.

use std::collections::HashMap;

use proptest::prelude::*;

use super::*;
use crate::{Addresses, Batch, Caps, Csum, Flood, Gso, GsoKind, Lock, Offload, PortSettings, StormLimits};

const MAX_LEN: usize = 1518;

fn switch(ports: u16) -> Switch {
    let mut switch = Switch::new(Limits::default(), 42);
    (0..ports).for_each(|port| attach(&mut switch, port, PortSettings::default()));
    switch
}

const START: Turn = Turn::at(Duration::ZERO);

fn attach(switch: &mut Switch, port: u16, settings: PortSettings) {
    switch.attach(PortId(port), Caps::plain(1500), &settings, Duration::ZERO);
}

fn batch(frames: &[Vec<u8>]) -> Batch {
    let mut batch = Batch::new(frames.len());
    frames.iter().for_each(|bytes| batch.slot().unwrap().set_slice(bytes));
    batch
}

fn frame(to: [u8; 6], from: [u8; 6], len: usize) -> Vec<u8> {
    let mut bytes = [to, from].concat();
    bytes.resize(len, 0);
    bytes
}

/// The bytes of the frames for each port that has any.
fn sent(switch: &Switch, batch: &Batch) -> HashMap<u16, Vec<Vec<u8>>> {
    switch
        .egresses()
        .map(|Egress { port, batch: frames, .. }| {
            (port.0, frames.view(batch).iter().map(Frame::to_vec).collect())
        })
        .filter(|(_, frames): &(u16, Vec<_>)| !frames.is_empty())
        .collect()
}

const fn mac(n: u8) -> [u8; 6] {
    [2, 0, 0, 0, 0, n]
}

#[test]
fn unknown_address_is_flooded_and_known_one_sent_to_its_port() {
    let mut switch = switch(3);
    let first = batch(&[frame(mac(2), mac(1), 60)]);
    switch.forward(PortId(0), first.frames(), START);
    assert_eq!(ports_of(&switch, &first), [1, 2]);
    let answer = batch(&[frame(mac(1), mac(2), 60)]);
    switch.forward(PortId(2), answer.frames(), START);
    assert_eq!(sent(&switch, &answer).into_keys().collect::<Vec<_>>(), [0]);
}

#[test]
fn runts_bad_sources_reserved_and_too_long_frames_are_counted() {
    let mut switch = switch(2);
    let frames = batch(&[
        vec![],
        vec![0xff; 13],
        frame(mac(9), [0xff; 6], 60),
        frame(mac(9), [1, 0, 0x5e, 0, 0, 1], 60),
        frame([0xff; 6], [0; 6], 60),
        frame([1, 0x80, 0xc2, 0, 0, 0x0e], mac(1), 60),
        frame(mac(9), mac(1), MAX_LEN + 1),
        frame(mac(9), mac(1), MAX_LEN),
    ]);
    let summary = switch.forward(PortId(0), frames.frames(), START);
    let drops: Vec<_> = summary.drops().filter(|(_, frames)| *frames > 0).collect();
    assert_eq!(drops, [(DropReason::Runt, 2), (DropReason::BadSource, 3), (DropReason::Reserved, 1)]);
    let egresses: Vec<_> =
        switch.egresses().map(|s| (s.port, s.batch.view(&frames).len(), s.too_long)).collect();
    assert_eq!(egresses, [(PortId(1), 1, 1)]);
}

/// A bridge without the spanning tree protocol, as Linux's.
#[test]
fn frames_of_the_spanning_tree_protocol_are_flooded() {
    let mut switch = switch(2);
    let frames = batch(&[frame([1, 0x80, 0xc2, 0, 0, 0], mac(1), 60)]);
    assert_eq!(switch.forward(PortId(0), frames.frames(), START).dropped(DropReason::Reserved), 0);
    assert_eq!(sent(&switch, &frames)[&1].len(), 1);
}

#[test]
fn gso_frames_may_exceed_the_mtu() {
    let mut switch = switch(2);
    let mut frames = batch(&[frame(mac(9), mac(1), 9000)]);
    let gso = Some(Gso { kind: GsoKind::TcpV4, size: 1448 });
    let mut big = frames.frames()[0].clone();
    big.set_offload(Offload { csum: Some(Csum { start: 34, offset: 16 }), gso, ..Offload::NONE });
    frames.clear();
    frames.slot().unwrap().copy_from(&big);
    assert!(switch.forward(PortId(0), frames.frames(), START).offloads);
    assert_eq!(sent(&switch, &frames)[&1].len(), 1);
}

#[test]
fn detached_port_gets_no_frames_and_loses_its_stations() {
    let mut switch = switch(3);
    switch.forward(PortId(1), batch(&[frame(mac(1), mac(2), 60)]).frames(), START);
    switch.detach(PortId(1));
    assert_eq!(switch.free_port_id(), Some(PortId(1)));
    let frames = batch(&[frame(mac(2), mac(1), 60)]);
    switch.forward(PortId(0), frames.frames(), START);
    assert_eq!(sent(&switch, &frames).into_keys().collect::<Vec<_>>(), [2]);
}

/// The ports that the frames of a batch go to.
fn ports_of(switch: &Switch, batch: &Batch) -> Vec<u16> {
    let mut ports: Vec<u16> = sent(switch, batch).into_keys().collect();
    ports.sort();
    ports
}

fn guest(n: u8) -> PortSettings {
    PortSettings { address: Some(Mac::new(mac(n))), lock: Lock::Mac, ..PortSettings::default() }
}

/// The frame with an 802.1Q tag.
fn tagged(mut bytes: Vec<u8>) -> Vec<u8> {
    bytes.splice(12..12, [0x81, 0, 0, 5]);
    bytes
}

#[test]
fn locked_port_sends_from_its_own_address_alone() {
    let mut switch = switch(1);
    attach(&mut switch, 1, guest(1));
    let frames = batch(&[
        frame(mac(9), mac(2), 60),
        tagged(frame(mac(9), mac(2), 60)),
        tagged(tagged(frame([0xff; 6], mac(3), 60))),
        frame(mac(9), [0; 6], 60),
        frame(mac(9), [0xff; 6], 60),
        frame(mac(9), mac(1), 60),
        tagged(frame(mac(9), mac(1), 60)),
    ]);
    let summary = switch.forward(PortId(1), frames.frames(), START);
    assert_eq!((summary.dropped(DropReason::Lock), sent(&switch, &frames)[&0].len()), (5, 2));
    assert_eq!(switch.fdb().unwrap().len(), 1, "its own");
    switch.set_lock(PortId(1), Lock::Off, Addresses::default());
    let summary = switch.forward(PortId(1), frames.frames(), START);
    assert_eq!((summary.dropped(DropReason::Lock), sent(&switch, &frames)[&0].len()), (0, 5));
    switch.set_lock(PortId(1), Lock::Mac, Addresses::default());
    assert_eq!(switch.forward(PortId(1), frames.frames(), START).dropped(DropReason::Lock), 5);
    assert_eq!(switch.fdb().unwrap().len(), 1, "what was learned meanwhile is forgotten");
}

#[test]
fn disabled_port_neither_sends_nor_is_sent_to() {
    let mut switch = switch(2);
    attach(&mut switch, 2, PortSettings { lock: Lock::Disabled, ..guest(1) });
    let own = batch(&[frame(mac(9), mac(1), 60)]);
    assert_eq!(switch.forward(PortId(2), own.frames(), START).dropped(DropReason::Lock), 1);
    let flood = batch(&[frame([0xff; 6], mac(9), 60)]);
    switch.forward(PortId(0), flood.frames(), START);
    assert_eq!(ports_of(&switch, &flood), [1]);
    let to_it = batch(&[frame(mac(1), mac(9), 60)]);
    switch.forward(PortId(0), to_it.frames(), START);
    let locked: Vec<_> = switch.egresses().map(|egress| (egress.port, egress.locked)).collect();
    assert_eq!((locked, ports_of(&switch, &to_it)), (vec![(PortId(2), 1)], vec![]));
}

/// A guest that says it is the gateway gets none of the gateway's frames.
#[test]
fn address_of_a_port_is_known_before_its_first_frame_and_cannot_be_stolen() {
    let mut switch = switch(2);
    attach(&mut switch, 2, PortSettings { lock: Lock::Off, ..guest(1) });
    let to_it = batch(&[frame(mac(1), mac(9), 60)]);
    switch.forward(PortId(0), to_it.frames(), START);
    assert_eq!(ports_of(&switch, &to_it), [2]);
    let stolen = batch(&[frame([0xff; 6], mac(1), 60)]);
    assert_eq!(switch.forward(PortId(1), stolen.frames(), START).dropped(DropReason::Sticky), 1);
    switch.forward(PortId(0), to_it.frames(), Turn::at(Duration::from_secs(3600)));
    assert_eq!(ports_of(&switch, &to_it), [2], "an hour later too");
    switch.detach(PortId(2));
    assert_eq!(switch.forward(PortId(1), stolen.frames(), START).dropped(DropReason::Sticky), 0);
    switch.forward(PortId(0), to_it.frames(), START);
    assert_eq!(ports_of(&switch, &to_it), [1], "nobody's own any more");
}

#[test]
fn address_of_two_ports_is_the_first_ones_until_that_is_removed() {
    let mut switch = switch(1);
    attach(&mut switch, 1, guest(1));
    attach(&mut switch, 2, guest(1));
    let has = |switch: &Switch| [1, 2].map(|port| switch.has_address(PortId(port), Mac::new(mac(1))));
    assert_eq!(has(&switch), [true, false]);
    switch.detach(PortId(1));
    assert!(has(&switch)[1]);
}

#[test]
fn frame_for_an_unknown_station_is_not_sent_to_locked_ports() {
    let mut switch = switch(2);
    attach(&mut switch, 2, guest(1));
    let unknown = batch(&[frame(mac(8), mac(9), 60)]);
    switch.forward(PortId(0), unknown.frames(), START);
    assert_eq!(ports_of(&switch, &unknown), [1]);
    let broadcast = batch(&[frame([0xff; 6], mac(9), 60)]);
    switch.forward(PortId(0), broadcast.frames(), START);
    assert_eq!(ports_of(&switch, &broadcast), [1, 2]);
}

#[test]
fn storms_end_at_the_limit_of_each_kind_and_known_stations_are_reached() {
    let mut switch = switch(2);
    let mut storm = StormLimits::default();
    Flood::ALL.into_iter().zip([10, 20, 5]).for_each(|(flood, limit)| storm.set(flood, Some(limit)));
    attach(&mut switch, 2, PortSettings { storm, ..PortSettings::default() });
    switch.forward(PortId(1), batch(&[frame(mac(7), mac(1), 60)]).frames(), START);
    let kinds = [[0xff; 6], [1, 0, 0x5e, 0, 0, 1], mac(9), mac(1)];
    let flood: Vec<_> = kinds.iter().flat_map(|to| vec![frame(*to, mac(3), 60); 100]).collect();
    let flood = batch(&flood);
    let reasons = [DropReason::Broadcast, DropReason::Multicast, DropReason::UnknownUnicast];
    for (second, passed) in [[20, 40, 10], [10, 20, 5]].into_iter().enumerate() {
        let turn = Turn::at(Duration::from_secs(second as u64));
        let summary = switch.forward(PortId(2), flood.frames(), turn);
        assert_eq!(reasons.map(|reason| 100 - summary.dropped(reason)), passed);
        assert_eq!(sent(&switch, &flood)[&1].len() as u64, 100 + passed.iter().sum::<u64>());
    }
}

fn gso_frame(len: usize, kind: GsoKind, size: u16) -> Frame {
    let mut tcp = frame(mac(9), mac(1), len);
    tcp[12..15].copy_from_slice(&[8, 0, 0x45]);
    tcp[23] = 6;
    tcp[46] = 0x50;
    let mut frame = Frame::from_slice(&tcp);
    let csum = Some(Csum { start: 34, offset: 16 });
    frame.set_offload(Offload { csum, gso: Some(Gso { kind, size }), ..Offload::NONE });
    frame
}

#[test]
fn frame_of_too_small_segments_is_dropped_at_its_own_port() {
    let mut switch = switch(2);
    let drops = |switch: &mut Switch, kind, size| {
        let summary = switch.forward(PortId(0), &[gso_frame(65_535, kind, size)], START);
        (summary.dropped(DropReason::SmallSegments), switch.egresses().count())
    };
    for size in [0, 1, 48, 215] {
        assert_eq!(drops(&mut switch, GsoKind::TcpV4, size), (1, 0), "{size}");
        assert_eq!(drops(&mut switch, GsoKind::TcpV6, size), (1, 0), "{size}");
    }
    for size in [216, 536, 1448, u16::MAX] {
        assert_eq!(drops(&mut switch, GsoKind::TcpV4, size), (0, 1), "{size}");
    }
    // The number of a UDP frame's segments is bounded where they are made.
    assert_eq!(drops(&mut switch, GsoKind::Udp, 8), (0, 1));
    // A guest of a tiny mtu cannot do otherwise.
    switch.set_caps(PortId(0), Caps::plain(128));
    assert_eq!(drops(&mut switch, GsoKind::TcpV4, 48), (0, 1));
    assert_eq!(drops(&mut switch, GsoKind::TcpV4, 47), (1, 0));
}

#[test]
fn turn_ends_where_its_frames_cost_its_budget() {
    let mut switch = switch(3);
    let budget = 1 << 20;
    let turn = Turn { budget, ..START };
    let long = gso_frame(65_000, GsoKind::TcpV4, 216);
    let frames = vec![long; 64];
    // For a port that takes it whole, as its bytes; for one that does not, with its 301 segments.
    for (caps, least, most) in [(Caps::full(1500), 15, 17), (Caps::plain(1500), 1, 2)] {
        (1..3).for_each(|port| switch.set_caps(PortId(port), caps));
        switch.detach(PortId(2));
        let summary = switch.forward(PortId(0), &frames, turn);
        assert!((least..=most).contains(&summary.taken), "{summary:?}");
        assert!(summary.cost >= budget);
    }
    // Short frames to one port are never so dear.
    let short = batch(&vec![frame(mac(9), mac(1), 60); 64]);
    let summary = switch.forward(PortId(0), short.frames(), turn);
    assert_eq!((summary.taken, summary.cost < budget / 8), (64, true));
}

fn any_frame() -> impl Strategy<Value = Vec<u8>> {
    let address = prop_oneof![
        6 => (0..6u8).prop_map(mac),
        1 => Just([0xff; 6]),
        1 => (0..32u8).prop_map(|n| [1, 0x80, 0xc2, 0, 0, n]),
        1 => any::<[u8; 6]>(),
    ];
    prop_oneof![
        8 => (address.clone(), address, 14..2000usize).prop_map(|(to, from, len)| frame(to, from, len)),
        1 => prop::collection::vec(any::<u8>(), 0..40),
    ]
}

proptest! {
    #[test]
    fn switch_and_model_forward_the_same_frames(rounds in prop::collection::vec(
        (0..4u16, prop::collection::vec(any_frame(), 0..20)), 0..30,
    )) {
        let mut switch = switch(4);
        let mut known: HashMap<Vec<u8>, u16> = HashMap::new();
        for (from, frames) in rounds {
            let mut expected: HashMap<u16, Vec<Vec<u8>>> = HashMap::new();
            let is_valid = |bytes: &&Vec<u8>| {
                bytes.len() >= 14 && bytes[6] & 1 == 0 && bytes[6..12] != [0; 6]
            };
            for bytes in frames.iter().filter(is_valid) {
                let to = bytes[..6].to_vec();
                let source = bytes[6..12].to_vec();
                known.insert(source, from);
                let ports: Vec<u16> = match known.get(&to) {
                    _ if to[..5] == [1, 0x80, 0xc2, 0, 0] && (1..16).contains(&to[5]) => vec![],
                    Some(port) if to[0] & 1 == 0 => vec![*port],
                    _ => (0..4).collect(),
                };
                for port in ports.into_iter().filter(|port| *port != from && bytes.len() <= MAX_LEN) {
                    expected.entry(port).or_default().push(bytes.clone());
                }
            }
            let batch = batch(&frames);
            switch.forward(PortId(from), batch.frames(), START);
            prop_assert_eq!(sent(&switch, &batch), expected);
        }
    }
}
