//! Tests of frames that wait for a full port: none waits for the tick, who is held for them, and who is not.

mod common;

use std::time::{Duration, Instant};

use bridge::{Bridge, Caps, Config, DropReason, Frame, Frames, Port, QueueLimits, port::pair::Pair};
use common::{BOUND, send, take, until};

/// A port of the bridge that queues `limit` frames for its other end, which is returned.
fn attach(bridge: &Bridge, name: &str, limit: usize) -> Pair {
    let (end, port) = Pair::new(Caps::plain(1500), limit).unwrap();
    bridge.attach(name, Box::new(port)).unwrap();
    end
}

/// A bridge whose ports are held for `hold`, and queue `frames`.
fn start(hold: Duration, frames: usize) -> Bridge {
    let queue = QueueLimits { hold, frames, ..QueueLimits::default() };
    Bridge::start(Config { queue, ..Config::default() }).unwrap()
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

/// Each of the stations, which sit behind `ends` in order from 1 on, sends a broadcast, so that the bridge knows it.
fn learn(bridge: &Bridge, ends: &mut [&mut Pair]) {
    for from in 0..ends.len() {
        send(ends[from], &[frame(255, from as u8 + 1, 0)]);
        for to in (0..ends.len()).filter(|to| *to != from) {
            take(ends[to], 1);
        }
    }
    assert_eq!(bridge.fdb().unwrap().len(), ends.len());
}

fn counters(bridge: &Bridge, name: &str) -> bridge::Counters {
    bridge.ports().unwrap().into_iter().find(|port| port.name == name).unwrap().counters
}

#[test]
fn burst_into_a_small_port_arrives_whole_and_waits_for_no_tick() {
    for limit in [1, 3, 64] {
        // Nothing but being told of room ends the hold before the tick.
        let bridge = start(BOUND, 2048);
        let mut source = attach(&bridge, "source", 4096);
        let mut sink = attach(&bridge, "sink", limit);
        learn(&bridge, &mut [&mut source, &mut sink]);
        let start = Instant::now();
        for burst in 0..5 {
            send(&mut source, &(0..2000).map(|n| frame(2, 1, n)).collect::<Vec<_>>());
            let frames = take(&mut sink, 2000);
            assert!(frames.iter().map(number).eq(0..2000), "burst {burst}, limit {limit}");
        }
        // A burst that waited for a tick every time would take a thousand seconds.
        assert!(start.elapsed() < Duration::from_secs(10), "{:?}", start.elapsed());
        for name in ["source", "sink"] {
            assert_eq!(counters(&bridge, name).missed_wakeups, 0);
        }
    }
}

#[test]
fn sender_whose_only_destination_is_full_is_held() {
    let bridge = start(BOUND, 2048);
    let mut source = attach(&bridge, "source", 4096);
    let mut sink = attach(&bridge, "sink", 4);
    let mut other = attach(&bridge, "other", 4096);
    let mut another = attach(&bridge, "another", 4096);
    learn(&bridge, &mut [&mut source, &mut sink, &mut other, &mut another]);
    let before = counters(&bridge, "source").rx_frames;
    send(&mut source, &(0..500).map(|n| frame(2, 1, n)).collect::<Vec<_>>());
    until("a full sink", || (counters(&bridge, "sink").tx_frames >= 4 + 3).then_some(()));
    // Others do not notice.
    for n in 0..100 {
        send(&mut other, &[frame(4, 3, n)]);
        take(&mut another, 1);
    }
    let held = counters(&bridge, "source").rx_frames - before;
    assert!(held <= 2 * Config::default().burst as u64, "{held} frames were received from the held port");
    let frames = take(&mut sink, 500);
    assert!(frames.iter().map(number).eq(0..500));
    assert_eq!(counters(&bridge, "sink").all_dropped(), 0);
}

#[test]
fn sender_with_another_destination_is_not_held() {
    let bridge = start(BOUND, 2048);
    let mut source = attach(&bridge, "source", 4096);
    let mut full = attach(&bridge, "full", 4);
    let mut free = attach(&bridge, "free", 4096);
    learn(&bridge, &mut [&mut source, &mut full, &mut free]);
    for n in 0..1000 {
        send(&mut source, &[frame(2, 1, n), frame(3, 1, n)]);
    }
    let frames = take(&mut free, 1000);
    assert!(frames.iter().map(number).eq(0..1000), "no frame waits behind those for the full port");
    let frames = take(&mut full, 1000);
    assert!(frames.iter().map(number).eq(0..1000));
}

#[test]
fn frames_beyond_the_bound_are_dropped_and_counted_when_the_hold_ends() {
    let bridge = start(Duration::from_millis(5), 20);
    let mut source = attach(&bridge, "source", 4096);
    let mut sink = attach(&bridge, "sink", 4);
    learn(&bridge, &mut [&mut source, &mut sink]);
    send(&mut source, &(0..1000).map(|n| frame(2, 1, n)).collect::<Vec<_>>());
    let dropped = |reason| counters(&bridge, "sink").dropped(reason);
    until("drops", || (dropped(DropReason::NoRoom) == 1000 - 4 - 20).then_some(()));
    let frames = take(&mut sink, 24);
    assert!(frames.iter().map(number).eq(0..24));
}

/// A wire's sender has no other destination: it waits for as long as the other end pauses, and nothing is lost.
#[test]
fn wire_loses_nothing_while_its_other_end_pauses() {
    let bridge = Bridge::start(Config::wire("wire")).unwrap();
    let mut source = attach(&bridge, "source", 64);
    let mut sink = attach(&bridge, "sink", 16);
    let mut frames = Vec::new();
    for number in 0..5000 {
        let mut bytes = frame(2, 1, number).to_vec();
        bytes.resize(1400, 7);
        frames.push(Frame::from_slice(&bytes));
    }
    // As many as fit; a bridge that drops takes all of them.
    let mut sent = 0;
    let mut progress = Instant::now();
    while sent < frames.len() && progress.elapsed() < Duration::from_millis(100) {
        let more = source.send(Frames::of(&frames[sent..])).unwrap();
        source.flush().unwrap();
        if more > 0 {
            sent += more;
            progress = Instant::now();
        }
    }
    assert!((16..5000).contains(&sent), "{sent}");
    let received = take(&mut sink, sent);
    assert!(received.iter().map(number).eq(0..sent as u16), "{} of {sent}", received.len());
    assert_eq!(counters(&bridge, "sink").all_dropped(), 0);
}
