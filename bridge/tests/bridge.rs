//! Tests of a running bridge with ports in this process.

mod common;

use std::sync::{
    Arc,
    atomic::{AtomicI64, Ordering::SeqCst},
};

use bridge::{
    Bridge, Caps, Config, Error, Fragment, Frame, Gso, GsoKind, Offload, Pin, PinOwner, fdb::Mac,
    partial_checksum::mark_blank,
};
use common::{pair, send, take, until};
use etherparse::PacketBuilder;

const fn mac(n: u8) -> [u8; 6] {
    [2, 0, 0, 0, 0, n]
}

fn frame(to: u8, from: u8, note: u8) -> Frame {
    Frame::from_slice(&[&mac(to)[..], &mac(from), &[0x88, 0xb5, note], &[0; 45]].concat())
}

fn start() -> Bridge {
    Bridge::start(Config::default()).unwrap()
}

#[test]
fn frames_cross_and_addresses_are_learned() {
    let bridge = start();
    let (mut ends, ports): (Vec<_>, Vec<_>) = (0..3).map(|_| pair(Caps::plain(1500))).unzip();
    for (name, port) in ["a", "b", "c"].iter().zip(ports) {
        bridge.attach(name, Box::new(port)).unwrap();
    }
    send(&mut ends[0], &[frame(2, 1, 0)]);
    assert_eq!(take(&mut ends[1], 1)[0].head()[14], 0);
    assert_eq!(take(&mut ends[2], 1).len(), 1);
    send(&mut ends[1], &[frame(1, 2, 1)]);
    assert_eq!(take(&mut ends[0], 1)[0].head()[14], 1);
    for note in 0..200 {
        send(&mut ends[0], &[frame(2, 1, note)]);
    }
    let notes: Vec<u8> = take(&mut ends[1], 200).iter().map(|frame| frame.head()[14]).collect();
    assert_eq!(notes, (0..200).collect::<Vec<u8>>());
    let mut rows: Vec<_> = bridge.fdb().unwrap().into_iter().map(|row| (row.mac, row.port)).collect();
    rows.sort();
    assert_eq!(rows, [(Mac::new(mac(1)), "a".into()), (Mac::new(mac(2)), "b".into())]);
    let counters: Vec<_> = bridge.ports().unwrap().iter().map(|port| port.counters).collect();
    assert_eq!((counters[0].rx_frames, counters[1].tx_frames, counters[2].tx_frames), (201, 201, 1));
    assert_eq!(counters[0].rx_bytes, 201 * 60);
}

#[test]
fn port_names_are_unique_and_detach_returns_the_port() {
    let bridge = start();
    let (_one, port) = pair(Caps::plain(1500));
    bridge.attach("a", Box::new(port)).unwrap();
    let (_two, again) = pair(Caps::plain(1500));
    assert!(matches!(bridge.attach("a", Box::new(again)), Err(Error::NameTaken(name)) if name == "a"));
    let port = bridge.detach("a").unwrap();
    assert!(matches!(bridge.detach("a"), Err(Error::NoSuchPort(_))));
    bridge.attach("b", port).unwrap();
    assert_eq!(bridge.ports().unwrap()[0].name, "b");
    bridge.stop();
}

/// Frames that a learning bridge drops: for the group addresses of IEEE 802.1D, and for a station that was last seen on
/// the same side.
fn frames_that_a_bridge_drops() -> Vec<Frame> {
    let reserved = |last: u8| {
        let to = [1, 0x80, 0xc2, 0, 0, last];
        Frame::from_slice(&[&to[..], &mac(1), &[0x88, 0x8e, last], &[0; 45]].concat())
    };
    let same_side = [frame(2, 1, 100), frame(1, 2, 101), frame(1, 1, 102)];
    (0..16).map(reserved).chain(same_side).collect()
}

#[test]
fn wire_carries_every_frame_from_one_end_to_the_other() {
    let bridge = Bridge::start(Config::wire("wire")).unwrap();
    let (mut left, port) = pair(Caps::plain(1500));
    bridge.attach("left", Box::new(port)).unwrap();
    let (mut right, port) = pair(Caps::plain(1500));
    bridge.attach("right", Box::new(port)).unwrap();
    let frames = frames_that_a_bridge_drops();
    let bytes = |frames: &[Frame]| frames.iter().map(Frame::to_vec).collect::<Vec<_>>();
    // Both ways: what one side has sent says nothing of where its addresses are.
    send(&mut left, &frames);
    assert_eq!(bytes(&take(&mut right, frames.len())), bytes(&frames));
    send(&mut right, &frames);
    assert_eq!(bytes(&take(&mut left, frames.len())), bytes(&frames));
    assert_eq!(bridge.fdb().unwrap(), []);
    let dropped: u64 = bridge.ports().unwrap().iter().map(|port| port.counters.all_dropped()).sum();
    assert_eq!(dropped, 0);
}

#[test]
fn wire_has_two_ends() {
    let bridge = Bridge::start(Config::wire("wire")).unwrap();
    let (mut left, port) = pair(Caps::plain(1500));
    bridge.attach("left", Box::new(port)).unwrap();
    let (_right, port) = pair(Caps::plain(1500));
    bridge.attach("right", Box::new(port)).unwrap();
    let (mut third, port) = pair(Caps::plain(1500));
    let error = bridge.attach("third", Box::new(port)).unwrap_err();
    assert!(error.to_string().contains("\"third\"") && error.to_string().contains("2 ports"), "{error}");
    // An end is free again once its port is detached, as when a vif reconnects.
    bridge.detach("right").unwrap();
    let (again, port) = pair(Caps::plain(1500));
    drop(std::mem::replace(&mut third, again));
    bridge.attach("third", Box::new(port)).unwrap();
    send(&mut left, &[frame(2, 1, 7)]);
    assert_eq!(take(&mut third, 1)[0].head()[14], 7);
}

#[test]
fn failed_port_is_removed_alone() {
    let bridge = start();
    let (one, port) = pair(Caps::plain(1500));
    let (mut two, port2) = pair(Caps::plain(1500));
    let (mut three, port3) = pair(Caps::plain(1500));
    bridge.attach("one", Box::new(port)).unwrap();
    bridge.attach("two", Box::new(port2)).unwrap();
    bridge.attach("three", Box::new(port3)).unwrap();
    drop(one);
    until("removal of the failed port", || (bridge.ports().unwrap().len() == 2).then_some(()));
    send(&mut two, &[frame(9, 1, 0)]);
    take(&mut three, 1);
}

#[test]
fn offloads_are_done_for_port_without_capabilities() {
    let bridge = start();
    let (mut source, port) = pair(Caps::full(1500));
    let (mut plain, port2) = pair(Caps::plain(1500));
    let (mut full, port3) = pair(Caps::full(1500));
    bridge.attach("source", Box::new(port)).unwrap();
    bridge.attach("plain", Box::new(port2)).unwrap();
    bridge.attach("full", Box::new(port3)).unwrap();
    let mut bytes = Vec::new();
    let builder = PacketBuilder::ethernet2(mac(1), mac(2)).ipv4([10, 0, 0, 1], [10, 0, 0, 2], 64);
    builder.tcp(1, 2, 3, 4).write(&mut bytes, &[5; 60_000]).unwrap();
    let mut long = Frame::from_slice(&bytes);
    let gso = Some(Gso { kind: GsoKind::TcpV4, size: 250 });
    long.set_offload(Offload { gso, ..Offload::NONE });
    mark_blank(&mut long).unwrap();
    send(&mut source, &[frame(9, 1, 0), long, frame(9, 1, 1)]);
    let whole = take(&mut full, 3);
    assert_eq!((whole[1].len(), whole[1].offload().gso), (bytes.len(), gso));
    let cut = take(&mut plain, 242);
    assert_eq!((cut[0].head()[14], cut[241].head()[14]), (0, 1));
    assert!(cut[1..241].iter().all(|frame| frame.len() == 304 && !frame.offload().is_work()));
}

/// An owner of pages that counts the holds.
struct Pages {
    bytes: [u8; 512],
    held: AtomicI64,
}

impl PinOwner for Pages {
    fn hold(&self, _: u32) {
        self.held.fetch_add(1, SeqCst);
    }
    fn release(&self, _: u32) {
        self.held.fetch_sub(1, SeqCst);
    }
}

#[allow(unsafe_code)]
fn pinned(pages: &Arc<Pages>) -> Frame {
    pages.hold(0);
    let mut pinned = frame(9, 1, 0);
    pinned.pin(Pin::adopt(pages.clone(), 0));
    // SAFETY: the pages live as long as their pins.
    pinned.push(unsafe { Fragment::new(pages.bytes.as_ptr(), 512) }).unwrap();
    pinned
}

#[test]
fn queued_frames_outlive_their_port_and_release_its_pages() {
    let bridge = start();
    let pages = Arc::new(Pages { bytes: [7; 512], held: AtomicI64::new(0) });
    let (mut source, port) = pair(Caps::full(1500));
    let (mut sink, port2) = pair(Caps::full(1500));
    bridge.attach("source", Box::new(port)).unwrap();
    bridge.attach("sink", Box::new(port2)).unwrap();
    send(&mut source, &(0..10).map(|_| pinned(&pages)).collect::<Vec<_>>());
    until("frames in the sink's queue", || {
        (bridge.ports().unwrap()[1].counters.tx_frames == 10).then_some(())
    });
    drop(bridge.detach("source").unwrap());
    drop(source);
    let frames = take(&mut sink, 10);
    assert!(frames.iter().all(|frame| frame.to_vec()[60..] == pages.bytes));
    assert!(pages.held.load(SeqCst) > 0);
    drop(frames);
    until("the last hold", || (pages.held.load(SeqCst) == 0).then_some(()));
}
