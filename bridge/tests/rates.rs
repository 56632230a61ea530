//! The rate at which a port may send.

mod common;

use std::time::{Duration, Instant};

use bridge::{Bridge, Caps, Config, Error, Frame, PortSettings, Rate, Setting};
use common::{pair, send, take};

const LEN: usize = 1000;
/// 1 MB/s, in bursts of 10 frames.
const RATE: Rate = Rate { bytes: 10 * LEN as u64, interval: Duration::from_millis(10) };

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
        .attach_with("limited", Box::new(port), PortSettings { rate: Some(RATE), ..PortSettings::default() })
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
    // Ten frames, and no more for an hour.
    let none = Rate { bytes: 10 * LEN as u64, interval: Duration::from_secs(3600) };
    bridge
        .attach_with("limited", Box::new(port), PortSettings { rate: Some(none), ..PortSettings::default() })
        .unwrap();
    let (mut sink, port) = pair(Caps::plain(1500));
    bridge.attach("sink", Box::new(port)).unwrap();
    send(&mut limited, &frames(300, 1));
    assert_eq!(take(&mut sink, 10).len(), 10);
    let start = Instant::now();
    bridge.set("limited", Setting::Rate(Some(RATE))).unwrap();
    let slow = take(&mut sink, 100).len();
    assert!(start.elapsed() >= Duration::from_millis(85), "{:?}", start.elapsed());
    bridge.set("limited", Setting::Rate(None)).unwrap();
    take(&mut sink, 290 - slow);
    assert!(
        matches!(bridge.set("other", Setting::Rate(None)), Err(Error::NoSuchPort(name)) if name == "other")
    );
}
