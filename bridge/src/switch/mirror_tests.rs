//! Copies for mirrors: to the output alone, once, with tags, and nothing back from there.

use std::time::Duration;

use proptest::prelude::*;

use super::{Switch, SwitchMirror, Turn};
use crate::fdb::{Limits, Mac, PortId};
use crate::{Batch, Caps, DropReason, Flag, Flags, Lock, PortSettings, Vlans};

const BROADCAST: [u8; 6] = [0xff; 6];
const OUTPUT: u16 = 3;

const fn mac(n: u8) -> [u8; 6] {
    [2, 0, 0, 0, 0, n]
}

fn switch(vlans: [&str; 4]) -> Switch {
    let mut switch = Switch::new(Limits::default(), 42);
    for (port, vlans) in (0..).zip(vlans) {
        let vlans = if vlans.is_empty() { Vlans::untagged() } else { vlans.parse().unwrap() };
        let settings = PortSettings { vlans, ..PortSettings::default() };
        switch.attach(PortId(port), Caps::plain(1500), &settings, Duration::ZERO);
    }
    switch
}

fn all(output: u16) -> SwitchMirror {
    let (src, dst, vlans) = (Vec::new(), Vec::new(), Vec::new());
    SwitchMirror { all: true, src, dst, vlans, output: PortId(output), frames: 0, bytes: 0 }
}

/// The frames that each port is sent, by their bytes from the 12th on, and why one is dropped.
fn sent(
    switch: &mut Switch,
    from: u16,
    to: [u8; 6],
    source: [u8; 6],
    rest: &[u8],
) -> (Vec<(u16, Vec<u8>)>, Option<DropReason>) {
    let mut batch = Batch::new(1);
    batch.slot().unwrap().set_slice(&[&to[..], &source, rest].concat());
    let summary = switch.forward(PortId(from), batch.frames(), Turn::at(Duration::ZERO));
    let mut retagged = Batch::new(1);
    let mut ports = Vec::new();
    for egress in switch.egresses() {
        let frames = match egress.has_other_tags {
            true => switch.retag(egress.port, &batch, &mut retagged),
            false => egress.batch.view(&batch),
        };
        ports.extend(frames.iter().map(|frame| (egress.port.0, frame.to_vec()[12..].to_vec())));
    }
    ports.sort();
    (ports, summary.drops().find(|(_, frames)| *frames > 0).map(|(reason, _)| reason))
}

#[test]
fn output_is_sent_one_copy_of_each_frame_and_takes_no_other_part() {
    let mut switch = switch([""; 4]);
    sent(&mut switch, OUTPUT, BROADCAST, mac(9), &[8, 6, 1]);
    switch.add_mirror(all(OUTPUT));
    switch.add_mirror(SwitchMirror { all: false, src: vec![PortId(0)], dst: vec![PortId(1)], ..all(OUTPUT) });
    let ports = |(sent, dropped): (Vec<(u16, Vec<u8>)>, _)| {
        (sent.into_iter().map(|(port, _)| port).collect::<Vec<_>>(), dropped)
    };
    assert_eq!(ports(sent(&mut switch, 0, BROADCAST, mac(1), &[8, 6, 1])), (vec![1, 2, OUTPUT], None));
    assert_eq!(
        ports(sent(&mut switch, 0, mac(9), mac(1), &[8, 6, 1])),
        (vec![1, 2, OUTPUT], None),
        "it is forgotten"
    );
    assert_eq!(
        ports(sent(&mut switch, OUTPUT, BROADCAST, mac(9), &[8, 6, 1])),
        (vec![], Some(DropReason::Lock))
    );
    assert_eq!(
        ports(sent(&mut switch, 0, [1, 0x80, 0xc2, 0, 0, 14], mac(1), &[8, 6, 1])).0,
        [0; 0],
        "what is dropped"
    );
    let counted: Vec<_> = switch.mirrors().iter().map(|mirror| (mirror.frames, mirror.bytes)).collect();
    assert_eq!(counted, [(2, 30), (2, 30)]);
    // Without mirrors it is as any other, with the lock that it had or was given since.
    switch.set_lock(PortId(OUTPUT), Lock::Off, Default::default());
    assert_eq!(ports(sent(&mut switch, OUTPUT, BROADCAST, mac(9), &[8, 6, 1])).1, Some(DropReason::Lock));
    switch.remove_mirror(0);
    switch.remove_mirror(0);
    assert_eq!(ports(sent(&mut switch, OUTPUT, BROADCAST, mac(9), &[8, 6, 1])), (vec![0, 1, 2], None));
}

#[test]
fn copy_has_the_tag_of_its_vlan_where_the_output_is_not_in_that_alone() {
    let tagged = |vlan, text: &[u8]| [&[0x81, 0, 0, vlan], text].concat();
    for (output, expected) in
        [("", tagged(10, b"\x08\x06a")), ("20p/10", tagged(10, b"\x08\x06a")), ("10", b"\x08\x06a".to_vec())]
    {
        let mut switch = switch(["10", "10p/20", "", output]);
        switch.add_mirror(all(OUTPUT));
        let (ports, _) = sent(&mut switch, 0, BROADCAST, mac(1), b"\x08\x06a");
        assert_eq!(ports, [(1, b"\x08\x06a".to_vec()), (OUTPUT, expected)], "to {output:?}");
        let (ports, dropped) = sent(&mut switch, 0, BROADCAST, mac(1), &tagged(20, b"\x08\x06b"));
        assert_eq!((ports, dropped), (vec![], Some(DropReason::Vlan)));
    }
    let mut switch = switch(["10", "10p/20", "", ""]);
    switch.add_mirror(SwitchMirror { vlans: vec![20], ..all(OUTPUT) });
    assert_eq!(sent(&mut switch, 0, BROADCAST, mac(1), b"\x08\x06a").0.len(), 1);
    let (ports, _) = sent(&mut switch, 1, BROADCAST, mac(2), &tagged(20, b"\x08\x06b"));
    assert_eq!(ports, [(OUTPUT, tagged(20, b"\x08\x06b"))]);
}

#[test]
fn frame_for_where_it_comes_from_is_copied_and_mirrors_end_with_their_output() {
    let mut switch = switch([""; 4]);
    switch.add_mirror(SwitchMirror { all: false, src: vec![PortId(0)], ..all(OUTPUT) });
    sent(&mut switch, 0, BROADCAST, mac(1), &[8, 6]);
    let (ports, dropped) = sent(&mut switch, 0, mac(1), mac(2), &[8, 6]);
    assert_eq!((ports.len(), ports[0].0, dropped), (1, OUTPUT, None));
    switch.detach(PortId(0));
    assert_eq!(switch.mirrors()[0].src, []);
    switch.detach(PortId(OUTPUT));
    assert!(switch.mirrors().is_empty());
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(if cfg!(miri) { 4 } else { 300 }))]

    /// Mirrors change nothing of what other ports are sent, whatever these are, and outputs are sent copies alone.
    #[test]
    fn mirrors_change_nothing_for_other_ports(
        frames in prop::collection::vec((0..5u16, 0..6u8, 0..6u8, any::<bool>()), 1..60),
        flags in prop::array::uniform5(any::<u8>()),
        selected in (any::<bool>(), prop::collection::vec(0..4u16, 0..3), prop::collection::vec(0..4u16, 0..3)),
    ) {
        let new = || {
            let mut switch = Switch::new(Limits::default(), 42);
            for (port, bits) in (0..).zip(flags) {
                let mut flags = Flags::default();
                Flag::ALL.into_iter().filter(|flag| bits >> *flag as usize & 1 == 1).for_each(|flag| flags.set(flag, !flag.default_value()));
                // The output is locked where there is no mirror.
                let lock = if port == 4 { Lock::Disabled } else { Lock::Off };
                let settings = PortSettings { flags, lock, ..PortSettings::default() };
                switch.attach(PortId(port), Caps::plain(1500), &settings, Duration::ZERO);
            }
            switch.fdb_add((Mac::new(mac(5)), None), (PortId(1), crate::FdbKind::Static), false, 0).unwrap();
            switch
        };
        let (mut plain, mut mirrored) = (new(), new());
        let (is_all, src, dst) = &selected;
        let ports = |ports: &[u16]| ports.iter().copied().map(PortId).collect::<Vec<_>>();
        mirrored.add_mirror(SwitchMirror { all: *is_all, src: ports(src), dst: ports(dst), ..all(4) });
        for (from, source, to, is_group) in frames {
            let to = if is_group { BROADCAST } else { mac(to) };
            let (expected, dropped) = sent(&mut plain, from, to, mac(source), &[8, 6]);
            let (found, why) = sent(&mut mirrored, from, to, mac(source), &[8, 6]);
            prop_assert_eq!(dropped, why);
            let (copies, others): (Vec<_>, Vec<_>) = found.into_iter().partition(|(port, _)| *port == 4);
            let selects = dropped.is_none()
                && (*is_all || src.contains(&from) || others.iter().any(|(port, _)| dst.contains(port)));
            prop_assert_eq!(others, expected);
            prop_assert_eq!(copies.len(), usize::from(selects));
        }
    }
}
