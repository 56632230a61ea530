use super::*;
use crate::{Gso, GsoKind, Offload};
use proptest::prelude::*;

/// A TCP frame of so many bytes of payload, to be cut into segments of 1,000.
fn tcp(payload: usize) -> Frame {
    let mut bytes = vec![0; 54 + payload];
    bytes[12..15].copy_from_slice(&[8, 0, 0x45]);
    bytes[23] = 6;
    bytes[46] = 0x50;
    let mut frame = Frame::from_slice(&bytes);
    frame.set_offload(Offload { gso: Some(Gso { kind: GsoKind::TcpV4, size: 1000 }), ..Offload::NONE });
    frame
}

fn bytes(amount: u64, interval: Duration) -> RateLimits {
    RateLimits { bytes: Some(Rate { amount, interval }), packets: None }
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    /// What passes in any time is what the stricter rate allows, but for the burst at its start and one frame, however late the
    /// bridge is, up to the shortest burst.
    #[test]
    fn frames_of_any_length_pass_at_the_rate(
        kbit in 64..100_000u64, packets in 5..20_000u64, payload in 1..30_000usize, late_us in 0..9_000u64,
    ) {
        let interval = Duration::from_millis(50);
        let packets = Rate { amount: packets, interval: Duration::from_secs(1) };
        let limits = RateLimits { packets: Some(packets), ..bytes(kbit * 1000 / 8 / 20, interval) };
        // As replaced: nothing is saved up.
        let mut limit = RateLimit::new(limits, true, Duration::ZERO).unwrap();
        let frame = [tcp(payload)];
        let (bytes_each, packets_each) = segment::on_wire(&frame[0]);
        let each = [bytes_each as f64, packets_each as f64];
        let end = Duration::from_secs(5);
        let mut now = Duration::ZERO;
        let mut sent = 0.0;
        while now < end {
            match limit.admit(now) {
                Ok(count) => {
                    prop_assert!(count > 0);
                    prop_assert_eq!(limit.count(Frames::of(&frame), now), 1);
                    limit.spend(Frames::of(&frame), now);
                    sent += 1.0;
                }
                Err(wait) => {
                    prop_assert!(wait > Duration::ZERO);
                    prop_assert_eq!(limit.count(Frames::of(&frame), now), 0);
                    now += wait + Duration::from_micros(late_us);
                }
            }
        }
        let rates = [limits.bytes.unwrap(), packets].map(|rate| rate.of(Duration::from_secs(1)) as f64);
        let fair = (rates[0] / each[0]).min(rates[1] / each[1]) * 5.0;
        prop_assert!(sent <= fair * 1.02 + 1.0, "{} of {}", sent, fair);
        // The last wait may end after the time.
        prop_assert!(sent >= fair * 0.98 - 1.0, "{} of {}", sent, fair);
    }

    /// `count` is what `admit` and `spend` allow one by one.
    #[test]
    fn frames_are_counted_as_they_would_pass_one_by_one(
        amount in 1..200_000u64, payloads in prop::collection::vec(1..60_000usize, 1..40),
    ) {
        let limits = RateLimits {
            packets: Some(Rate { amount: 30, interval: Duration::from_secs(1) }),
            ..bytes(amount, Duration::from_secs(1))
        };
        let frames: Vec<Frame> = payloads.into_iter().map(tcp).collect();
        let mut limit = RateLimit::new(limits, false, Duration::ZERO).unwrap();
        let counted = limit.count(Frames::of(&frames), Duration::ZERO);
        let one_by_one = frames.iter().take_while(|frame| {
            let admitted = limit.admit(Duration::ZERO).is_ok();
            limit.spend(Frames::of(std::slice::from_ref(*frame)), Duration::ZERO);
            admitted
        });
        prop_assert_eq!(one_by_one.count(), counted);
    }
}

#[test]
fn limits_say_what_they_are_and_zero_intervals_do_not_limit() {
    let zero = bytes(1, Duration::ZERO);
    assert!(RateLimit::new(zero, false, Duration::ZERO).is_none());
    assert_eq!(zero.to_string(), "none");
    let packets = Some(Rate { amount: 50, interval: Duration::from_millis(50) });
    let both = RateLimits { packets, ..bytes(62_500, Duration::from_millis(50)) };
    assert_eq!(both.to_string(), "62500 bytes in 50ms, 50 packets in 50ms");
}

#[test]
fn an_unsegmented_frame_counts_its_segments_and_their_headers() {
    let frame = tcp(3000);
    assert_eq!(segment::on_wire(&frame), (3 * 1054, 3));
    let packets = Some(Rate { amount: 4, interval: Duration::from_secs(1) });
    let mut limit = RateLimit::new(RateLimits { bytes: None, packets }, false, Duration::ZERO).unwrap();
    let frames = [tcp(3000), tcp(3000), tcp(3000)];
    assert_eq!(limit.count(Frames::of(&frames), Duration::ZERO), 2);
    limit.spend(Frames::of(&frames[..2]), Duration::ZERO);
    // Two more than there were, and the next one.
    assert_eq!(limit.admit(Duration::ZERO), Err(Duration::from_millis(750)));
}

#[test]
fn limit_that_replaces_another_starts_with_nothing_saved_up() {
    let limits = bytes(5000, Duration::from_millis(50));
    assert!(RateLimit::new(limits, false, Duration::ZERO).unwrap().admit(Duration::ZERO).is_ok());
    let mut later = RateLimit::new(limits, true, Duration::ZERO).unwrap();
    assert!(later.admit(Duration::ZERO).is_err());
    assert!(later.admit(Duration::from_millis(1)).is_ok());
}
