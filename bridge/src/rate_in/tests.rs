use super::*;
use crate::{Frame, egress_queue::EgressQueue, fdb::PortId};
use proptest::prelude::*;
use std::collections::VecDeque;

const LIMITS: QueueLimits = QueueLimits {
    frames: 2048,
    bytes: 2 << 20,
    hold: Duration::from_millis(5),
    stall: Duration::from_secs(10),
};

fn bytes(bits: u64) -> RateLimits {
    let rate = Rate { amount: bits / 8 / 20, interval: Duration::from_millis(50) };
    RateLimits { bytes: Some(rate), packets: None }
}

/// A frame of a flow, which is the last byte of its source.
fn frame(flow: u8, len: usize) -> Frame {
    let mut bytes = vec![0; len];
    bytes[..14].copy_from_slice(&[2, 0, 0, 0, 0, 9, 2, 0, 0, 0, 0, flow, 8, 0]);
    Frame::from_slice(&bytes)
}

/// A port that takes all frames that it is offered, and what they were.
struct Receiver {
    rate_in: RateIn,
    queue: EgressQueue,
    /// When, of which flow and of how many bytes.
    taken: Vec<(Instant, u8, usize)>,
    dropped: u64,
}

impl Receiver {
    fn new(limits: RateLimits, now: Instant) -> Receiver {
        // As one that takes the place of another: nothing is saved up.
        let rate_in = RateIn::new(limits, true, now).unwrap();
        let mut queue = EgressQueue::new(LIMITS, 7);
        queue.set_limits(rate_in.queue(LIMITS));
        Receiver { rate_in, queue, taken: Vec::new(), dropped: 0 }
    }

    fn send(&mut self, frame: &Frame, now: Instant) {
        self.dropped += self.queue.push(frame, PortId(1), false, now);
        self.drain(now);
    }

    /// Takes what the rate allows; when to do so again.
    fn drain(&mut self, now: Instant) -> Option<Instant> {
        while !self.queue.is_empty() {
            let most = self.rate_in.admit(now);
            if most == 0 {
                return self.rate_in.wait(now);
            }
            let staged = self.queue.stage(most);
            let count = self.rate_in.count(Frames::of(staged), now);
            let taken = Frames::of(staged).first(count);
            self.rate_in.spend(taken, now);
            self.taken.extend(taken.iter().map(|frame| (now, frame.head()[11], frame.len())));
            self.queue.taken(count, now);
        }
        None
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 16, failure_persistence: None, ..ProptestConfig::default() })]

    /// Senders that never pause and a bridge that wakes up late: a port is sent its rate, and each flow a part.
    #[test]
    fn port_is_sent_its_rate_whoever_sends(
        bits in 64_000..1_000_000u64, flows in 1..9u8, len in 500..1515usize, late_us in 0..9_000u64,
    ) {
        let start = Instant::now();
        let mut receiver = Receiver::new(bytes(bits), start);
        let end = start + Duration::from_secs(5);
        let mut now = start;
        while now < end {
            for _ in 0..4 {
                (0..flows).for_each(|flow| receiver.send(&frame(flow, len), now));
            }
            let due = receiver.drain(now).expect("more is sent than the rate allows");
            now = due + Duration::from_micros(late_us);
        }
        let sent: usize = receiver.taken.iter().map(|(_, _, len)| len).sum();
        let fair = bits as f64 / 8.0 * 5.0;
        prop_assert!((sent as f64 - fair).abs() <= fair * 0.02 + len as f64, "{} of {}", sent, fair);
        let of = |flow| receiver.taken.iter().filter(|taken| taken.1 == flow).count();
        // Flows that share a place in the queue's table share its part, whoever comes first.
        let served = (0..flows).filter(|flow| of(*flow) > 0).count();
        prop_assert!(receiver.dropped > 0 && 2 * served > usize::from(flows), "{} of {}", served, flows);
    }

    /// What waits is bounded, and so is for how long.
    #[test]
    fn frames_wait_no_longer_than_the_bound(bits in 64_000..1_000_000u64, len in 200..1515usize) {
        let start = Instant::now();
        let mut receiver = Receiver::new(bytes(bits), start);
        let mut now = start;
        let mut waiting = VecDeque::new();
        let mut longest = Duration::ZERO;
        while now < start + Duration::from_secs(5) {
            for _ in 0..4 {
                let dropped = receiver.dropped;
                let before = receiver.taken.len();
                receiver.send(&frame(1, len), now);
                if receiver.dropped == dropped {
                    waiting.push_back(now);
                }
                for _ in before..receiver.taken.len() {
                    longest = longest.max(now - waiting.pop_front().unwrap());
                }
            }
            now = receiver.drain(now).expect("more is sent than the rate allows");
        }
        let rate = bits as f64 / 8.0;
        let bound = DELAY.as_secs_f64().max((LEAST * FRAME) as f64 / rate) + 2.0 * len as f64 / rate;
        prop_assert!(longest.as_secs_f64() <= bound, "{:?} of {}", longest, bound);
        prop_assert!(longest.as_secs_f64() >= bound / 4.0, "{:?} of {}", longest, bound);
    }
}

#[test]
fn sparse_flow_waits_for_a_few_frames_of_another_and_not_for_all() {
    let start = Instant::now();
    let mut receiver = Receiver::new(bytes(64_000), start);
    let mut now = start;
    (0..40).for_each(|_| receiver.send(&frame(1, 1514), start));
    for _ in 0..6 {
        now = receiver.drain(now).unwrap();
    }
    receiver.send(&frame(2, 64), now);
    let sent = now;
    while !receiver.taken.iter().any(|taken| taken.1 == 2) {
        now = receiver.drain(now).unwrap_or(now);
    }
    // Each is sent in 190 ms.
    assert!(now - sent <= Duration::from_millis(3 * 190), "{:?}", now - sent);
}

#[test]
fn queue_is_bounded_by_time_and_long_frames_are_cut_at_low_rates() {
    let now = Instant::now();
    let of = |limits| {
        let rate_in = RateIn::new(limits, false, now).unwrap();
        let QueueLimits { bytes, frames, .. } = rate_in.queue(LIMITS);
        (bytes, frames, rate_in.cuts(LIMITS))
    };
    assert_eq!(of(bytes(64_000)), (16 * 1514, 2048, true));
    assert_eq!(of(bytes(8_000_000)), (100_000, 2048, true));
    assert_eq!(of(bytes(10_000_000_000)), (2 << 20, 2048, false));
    let packets = Some(Rate { amount: 50, interval: Duration::from_millis(50) });
    assert_eq!(of(RateLimits { bytes: None, packets }), (2 << 20, 100, true));
    assert!(RateIn::new(RateLimits::default(), false, now).is_none());
}

#[test]
fn lower_rate_drops_what_does_not_fit_any_more() {
    let start = Instant::now();
    let mut receiver = Receiver::new(bytes(80_000_000), start);
    (0..400).for_each(|_| receiver.send(&frame(1, 1514), start));
    let waited = 400 - receiver.taken.len() as u64;
    assert_eq!(receiver.dropped, 0);
    let slow = RateIn::new(bytes(64_000), true, start).unwrap();
    assert_eq!(receiver.queue.set_limits(slow.queue(LIMITS)), waited - 16);
}
