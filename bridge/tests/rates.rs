//! The rates at which a port may send and is sent frames.

mod common;

use std::time::{Duration, Instant};

use bridge::{
    Bridge, Caps, Config, Counters, DropReason, Error, Frame, PortSettings, Rate, RateLimits, Setting, fdb,
};
use common::{pair, send, take, until};

const LEN: usize = 1000;
/// 1 MB/s, in bursts of 10 frames.
const RATE: RateLimits = bytes(10, Duration::from_millis(10));

/// So many frames in an interval, in bytes.
const fn bytes(frames: u64, interval: Duration) -> RateLimits {
    RateLimits { bytes: Some(Rate { amount: frames * LEN as u64, interval }), packets: None }
}

fn frames(count: usize, from: u8) -> Vec<Frame> {
    let mut bytes = vec![0; LEN];
    bytes[..12].copy_from_slice(&[0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 2, 0, 0, 0, 0, from]);
    vec![Frame::from_slice(&bytes); count]
}

#[test]
fn frames_of_a_limited_port_wait_and_those_of_others_do_not() {
    let bridge = Bridge::start(Config::default()).unwrap();
    let (mut limited, port) = pair(Caps::plain(1500));
    bridge
        .attach_with("limited", Box::new(port), PortSettings { rate: RATE, ..PortSettings::default() })
        .unwrap();
    let (mut free, port) = pair(Caps::plain(1500));
    bridge.attach("free", Box::new(port)).unwrap();
    let (mut sink, port) = pair(Caps::plain(1500));
    bridge.attach("sink", Box::new(port)).unwrap();
    let start = Instant::now();
    send(&mut limited, &frames(500, 1));
    // Another port's frames overtake those that wait.
    send(&mut free, &frames(1, 2));
    let first = take(&mut sink, 300);
    let position = first.iter().position(|frame| frame.head()[11] == 2).expect("among the first");
    assert!(position < 250, "{position}");
    take(&mut sink, 501 - first.len());
    // 500 frames but the first burst and one take 489 ms; none is lost.
    assert!(start.elapsed() >= Duration::from_millis(485), "{:?}", start.elapsed());
}

#[test]
fn rate_is_changed_and_lifted_while_frames_wait() {
    let bridge = Bridge::start(Config::default()).unwrap();
    let (mut limited, port) = pair(Caps::plain(1500));
    // Ten frames, and the next one in minutes.
    let none = bytes(10, Duration::from_secs(3_600_000));
    bridge
        .attach_with("limited", Box::new(port), PortSettings { rate: none, ..PortSettings::default() })
        .unwrap();
    let (mut sink, port) = pair(Caps::plain(1500));
    bridge.attach("sink", Box::new(port)).unwrap();
    send(&mut limited, &frames(300, 1));
    assert_eq!(take(&mut sink, 10).len(), 10);
    let start = Instant::now();
    bridge.set("limited", Setting::Rate(RATE)).unwrap();
    let slow = take(&mut sink, 100).len();
    assert!(start.elapsed() >= Duration::from_millis(85), "{:?}", start.elapsed());
    bridge.set("limited", Setting::Rate(RateLimits::default())).unwrap();
    take(&mut sink, 290 - slow);
    assert!(
        matches!(bridge.set("other", Setting::Rate(RateLimits::default())), Err(Error::NoSuchPort(name)) if name == "other")
    );
}

/// Settings of a port with the one station 02:00:00:00:00:`last`.
fn station(last: u8, rate_in: RateLimits) -> PortSettings {
    let address = Some(fdb::Mac::new([2, 0, 0, 0, 0, last]));
    PortSettings { address, rate_in, ..PortSettings::default() }
}

/// Frames from station 1 to these in turn, so many to each.
fn to_each(stations: &[u8], count: usize) -> Vec<Frame> {
    let frame = |to: u8| {
        let mut bytes = vec![0; LEN];
        bytes[..12].copy_from_slice(&[2, 0, 0, 0, 0, to, 2, 0, 0, 0, 0, 1]);
        Frame::from_slice(&bytes)
    };
    (0..count).flat_map(|_| stations.iter().map(|to| frame(*to))).collect()
}

fn counters(bridge: &Bridge, name: &str) -> Counters {
    bridge.ports().unwrap().into_iter().find(|port| port.name == name).expect("the port").counters
}

#[test]
fn limited_receiver_is_sent_its_rate_and_delays_nobody_elses_frames() {
    let bridge = Bridge::start(Config::default()).unwrap();
    let (mut sender, port) = pair(Caps::plain(1500));
    bridge.attach_with("sender", Box::new(port), station(1, RateLimits::default())).unwrap();
    let (mut free, port) = pair(Caps::plain(1500));
    bridge.attach_with("free", Box::new(port), station(2, RateLimits::default())).unwrap();
    let (mut limited, port) = pair(Caps::plain(1500));
    let start = Instant::now();
    bridge.attach_with("limited", Box::new(port), station(3, RATE)).unwrap();
    send(&mut sender, &to_each(&[2, 3], 500));
    assert_eq!(take(&mut free, 500).len(), 500);
    let count = until("all frames are sent or dropped", || {
        let counters = counters(&bridge, "limited");
        let dropped = counters.dropped(DropReason::RateIn);
        (counters.tx_frames + dropped == 500).then_some(counters.tx_frames)
    });
    // The burst at the start, what has accrued, and one frame; at least that burst and what may wait, 100 ms of the rate.
    let most = 10.0 + start.elapsed().as_secs_f64() * 1000.0 + 1.0;
    assert!((110..=500).contains(&count) && count as f64 <= most, "{count} of {most}");
    assert_eq!(take(&mut limited, count as usize).len(), count as usize);
    assert_eq!(counters(&bridge, "free").all_dropped(), 0);
}

#[test]
fn receiving_rate_is_changed_and_lifted_while_frames_wait() {
    let bridge = Bridge::start(Config::default()).unwrap();
    let (mut sender, port) = pair(Caps::plain(1500));
    bridge.attach_with("sender", Box::new(port), station(1, RateLimits::default())).unwrap();
    let (mut limited, port) = pair(Caps::plain(1500));
    // Ten packets, and no more for an hour.
    let packets = |amount, interval| RateLimits { bytes: None, packets: Some(Rate { amount, interval }) };
    let none = packets(10, Duration::from_secs(3600));
    bridge.attach_with("limited", Box::new(port), station(2, none)).unwrap();
    // Sixteen wait at any rate.
    send(&mut sender, &to_each(&[2], 26));
    assert_eq!(take(&mut limited, 10).len(), 10);
    let start = Instant::now();
    bridge.set("limited", Setting::RateIn(packets(1, Duration::from_millis(10)))).unwrap();
    let slow = take(&mut limited, 10).len();
    // As it takes the place of another rate, nothing is saved up.
    assert!(start.elapsed() >= Duration::from_millis(95), "{:?}", start.elapsed());
    bridge.set("limited", Setting::RateIn(RateLimits::default())).unwrap();
    assert_eq!(take(&mut limited, 16 - slow).len(), 16 - slow);
    assert_eq!(counters(&bridge, "limited").all_dropped(), 0);
    let error = bridge.set("other", Setting::RateIn(RATE));
    assert!(matches!(error, Err(Error::NoSuchPort(name)) if name == "other"));
}
