//! Mirrors of a running bridge: who is named, who goes, and an output that takes nothing.

mod common;

use bridge::{
    Bridge, Caps, Config, DropReason, Error, Frame, Mirror, MirrorError, QueueLimits, port::pair::Pair,
};
use common::{BOUND, send, take, until};

fn attach(bridge: &Bridge, name: &str, limit: usize) -> Pair {
    let (end, port) = Pair::new(Caps::plain(1500), limit).unwrap();
    bridge.attach(name, Box::new(port)).unwrap();
    end
}

/// A numbered frame from one station to another.
fn frame(to: u8, from: u8, number: u16) -> Frame {
    let [high, low] = number.to_be_bytes();
    Frame::from_slice(
        &[&[2, 0, 0, 0, 0, to, 2, 0, 0, 0, 0, from, 0x88, 0xb5, high, low][..], &[0; 44]].concat(),
    )
}

fn number(frame: &Frame) -> u16 {
    u16::from_be_bytes([frame.head()[14], frame.head()[15]])
}

fn src(ports: &[&str], output: &str) -> Mirror {
    let select_src = ports.iter().map(|port| (*port).to_owned()).collect();
    Mirror { select_src, output: output.into(), ..Mirror::default() }
}

#[test]
fn output_that_takes_nothing_loses_copies_and_no_frame_of_the_mirrored_port() {
    // The sink is small: its sender is held for it, as it would be without the mirror.
    let queue = QueueLimits { hold: BOUND, stall: 3 * BOUND, frames: 8, ..QueueLimits::default() };
    let bridge = Bridge::start(Config { queue, ..Config::default() }).unwrap();
    let mut source = attach(&bridge, "source", 4096);
    let mut sink = attach(&bridge, "sink", 4);
    let _ids = attach(&bridge, "ids", 4);
    send(&mut sink, &[frame(1, 2, 0)]);
    take(&mut source, 1);
    bridge.mirror_add("m", src(&["source"], "ids")).unwrap();
    let frames: Vec<_> = (0..2000).map(|n| frame(2, 1, n)).collect();
    send(&mut source, &frames);
    assert!(take(&mut sink, 2000).iter().map(number).eq(0..2000));
    let lost = until("copies are lost", || {
        let ports = bridge.ports().unwrap();
        let counters = ports.iter().find(|port| port.name == "ids").unwrap().counters;
        Some(counters.dropped(DropReason::NoRoom)).filter(|lost| *lost > 0)
    });
    assert!((1900..2000).contains(&lost), "{lost}");
    let mirrors = bridge.mirrors().unwrap();
    assert_eq!((mirrors[0].frames, mirrors[0].bytes), (2000, 120_000));
}

#[test]
fn mirrors_are_named_listed_and_refused() {
    let bridge = Bridge::start(Config::default()).unwrap();
    let _ends = ["one", "two", "ids", "other"].map(|name| attach(&bridge, name, 64));
    let all = Mirror { select_all: true, output: "ids".into(), ..Mirror::default() };
    bridge.mirror_add("m", all.clone()).unwrap();
    let refused = |name: &str, mirror: Mirror| match bridge.mirror_add(name, mirror) {
        Err(Error::Mirror { error, .. }) => error,
        other => panic!("{other:?}"),
    };
    assert_eq!(refused("m", src(&["one"], "other")), MirrorError::Exists);
    assert_eq!(refused("n", src(&[], "other")), MirrorError::SelectsNothing);
    assert_eq!(refused("n", src(&["one", "other"], "other")), MirrorError::SelectsOutput);
    assert_eq!(refused("n", src(&["ids"], "other")), MirrorError::SelectsOutput);
    assert_eq!(refused("n", Mirror { select_vlan: vec![4095], ..all.clone() }), MirrorError::Vlan);
    assert!(matches!(bridge.mirror_add("n", src(&["one"], "none")), Err(Error::NoSuchPort(_))));
    assert!(matches!(bridge.mirror_add("n", src(&["none"], "ids")), Err(Error::NoSuchPort(_))));
    bridge.mirror_add("n", Mirror { select_dst: vec!["two".into()], ..src(&[], "other") }).unwrap();
    assert_eq!(refused("o", src(&["two"], "two")), MirrorError::SelectsOutput);
    assert_eq!(refused("o", src(&["one"], "two")), MirrorError::SelectsOutput, "another one selects it");
    let names: Vec<_> = bridge.mirrors().unwrap().into_iter().map(|info| (info.name, info.mirror)).collect();
    assert_eq!((names.len(), &names[0]), (2, &("m".to_owned(), all.clone())));
    for n in 2..32 {
        bridge.mirror_add(&n.to_string(), all.clone()).unwrap();
    }
    assert_eq!(refused("32", all), MirrorError::TooMany);
    bridge.mirror_delete("n").unwrap();
    let error = bridge.mirror_delete("n").unwrap_err().to_string();
    assert_eq!(error, "mirror \"n\": there is none of this name");
    let wire = Bridge::start(Config::wire("w")).unwrap();
    assert!(matches!(wire.mirror_add("m", src(&["one"], "two")), Err(Error::Wire(_))));
    assert!(wire.mirrors().unwrap().is_empty());
}

#[test]
fn selected_port_may_go_and_come_and_the_output_takes_its_mirror_with_it() {
    let bridge = Bridge::start(Config::default()).unwrap();
    let [one, mut two, mut ids] = ["one", "two", "ids"].map(|name| attach(&bridge, name, 64));
    bridge.mirror_add("m", src(&["one"], "ids")).unwrap();
    drop(one);
    until("the port is gone", || (bridge.ports().unwrap().len() == 2).then_some(()));
    let mut one = attach(&bridge, "one", 64);
    send(&mut one, &[frame(255, 1, 7)]);
    assert_eq!([&mut two, &mut ids].map(|end| number(&take(end, 1)[0])), [7, 7]);
    // What the output sends goes nowhere: the next frame that the others have is not its.
    send(&mut ids, &[frame(255, 3, 8)]);
    until("it is dropped", || {
        let ports = bridge.ports().unwrap();
        let counters = ports.iter().find(|port| port.name == "ids").unwrap().counters;
        (counters.dropped(DropReason::Lock) == 1).then_some(())
    });
    send(&mut one, &[frame(255, 1, 9)]);
    assert_eq!(number(&take(&mut two, 1)[0]), 9);
    bridge.detach("ids").unwrap().flush().unwrap();
    assert!(bridge.mirrors().unwrap().is_empty());
}
