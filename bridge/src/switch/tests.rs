//! Compares the switch with a simple model under random frames.

use std::collections::HashMap;

use proptest::prelude::*;

use super::*;
use crate::{Batch, Csum, Gso, GsoKind, Offload};

const MAX_LEN: usize = 1518;

fn switch(ports: u16) -> Switch {
    let mut switch = Switch::new(Limits::default(), 42);
    (0..ports).for_each(|port| switch.attach(PortId(port), MAX_LEN));
    switch
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
    switch.forward(PortId(0), first.frames(), 0);
    let mut ports: Vec<u16> = sent(&switch, &first).into_keys().collect();
    ports.sort();
    assert_eq!(ports, [1, 2]);
    let answer = batch(&[frame(mac(1), mac(2), 60)]);
    switch.forward(PortId(2), answer.frames(), 0);
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
    let summary = switch.forward(PortId(0), frames.frames(), 0);
    assert_eq!(
        summary,
        BatchSummary { runts: 2, bad_sources: 3, reserved: 1, offloads: false, flooded: true }
    );
    let egresses: Vec<_> =
        switch.egresses().map(|s| (s.port, s.batch.view(&frames).len(), s.too_long)).collect();
    assert_eq!(egresses, [(PortId(1), 1, 1)]);
}

/// A bridge without the spanning tree protocol, as Linux's.
#[test]
fn frames_of_the_spanning_tree_protocol_are_flooded() {
    let mut switch = switch(2);
    let frames = batch(&[frame([1, 0x80, 0xc2, 0, 0, 0], mac(1), 60)]);
    assert_eq!(switch.forward(PortId(0), frames.frames(), 0).reserved, 0);
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
    assert!(switch.forward(PortId(0), frames.frames(), 0).offloads);
    assert_eq!(sent(&switch, &frames)[&1].len(), 1);
}

#[test]
fn detached_port_gets_no_frames_and_loses_its_stations() {
    let mut switch = switch(3);
    switch.forward(PortId(1), batch(&[frame(mac(1), mac(2), 60)]).frames(), 0);
    switch.detach(PortId(1));
    assert_eq!(switch.free_port_id(), Some(PortId(1)));
    let frames = batch(&[frame(mac(2), mac(1), 60)]);
    switch.forward(PortId(0), frames.frames(), 0);
    assert_eq!(sent(&switch, &frames).into_keys().collect::<Vec<_>>(), [2]);
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
            switch.forward(PortId(from), batch.frames(), 0);
            prop_assert_eq!(sent(&switch, &batch), expected);
        }
    }
}
