//! Tests of the frames that wait for a port.

use super::*;

const A: PortId = PortId(1);
const B: PortId = PortId(2);

fn limits() -> QueueLimits {
    QueueLimits { frames: 8, bytes: 4000, ..QueueLimits::default() }
}

/// A frame of station `station`, numbered.
fn frame(station: u8, number: u8, len: usize) -> Frame {
    let mut bytes = vec![number; len];
    bytes[..12].copy_from_slice(&[2, 0, 0, 0, 0, 9, 2, 0, 0, 0, 0, station]);
    Frame::from_slice(&bytes)
}

/// Takes everything, and returns the station and number of each frame.
fn drain(queue: &mut EgressQueue, now: Instant) -> Vec<(u8, u8)> {
    let mut all = Vec::new();
    while !queue.is_empty() {
        let staged = queue.stage(usize::MAX);
        all.extend(staged.iter().map(|frame| (frame.head()[11], frame.head()[20])));
        let count = staged.len();
        queue.taken(count, now);
    }
    all
}

#[test]
fn frames_of_one_flow_keep_their_order_and_are_bounded() {
    let now = Instant::now();
    let mut queue = EgressQueue::new(limits(), 1);
    let dropped: u64 = (0..10).map(|number| queue.push(&frame(1, number, 100), A, false, now)).sum();
    assert_eq!(dropped, 2, "a bound of eight frames");
    assert_eq!(queue.push(&frame(1, 11, 4001), A, false, now), 1, "longer than all of the bytes");
    assert_eq!(drain(&mut queue, now), (0..8).map(|number| (1, number)).collect::<Vec<_>>());
    assert_eq!(queue.push(&frame(1, 0, 3000), A, false, now), 0);
    assert_eq!(queue.push(&frame(1, 1, 1001), A, false, now), 1, "a bound of 4,000 bytes");
    assert_eq!(queue.push(&frame(1, 2, 1000), A, false, now), 0);
}

#[test]
fn flow_with_the_most_bytes_loses_frames_to_others() {
    let now = Instant::now();
    let mut queue = EgressQueue::new(limits(), 1);
    for number in 0..8 {
        assert_eq!(queue.push(&frame(1, number, 100), A, false, now), 0);
    }
    assert_eq!(queue.push(&frame(2, 0, 100), B, false, now), 1);
    assert_eq!(queue.push(&frame(2, 1, 100), B, false, now), 1);
    let mut left = drain(&mut queue, now);
    left.sort_unstable();
    assert_eq!(left, [(1, 2), (1, 3), (1, 4), (1, 5), (1, 6), (1, 7), (2, 0), (2, 1)]);
}

#[test]
fn flows_take_turns_by_bytes() {
    let now = Instant::now();
    let mut queue = EgressQueue::new(QueueLimits { bytes: 4 << 20, frames: 1000, ..limits() }, 1);
    for number in 0..100 {
        queue.push(&frame(1, number, 9000), A, false, now);
    }
    for number in 0..20 {
        queue.push(&frame(2, number, 9000), B, false, now);
    }
    let all = drain(&mut queue, now);
    let of_second = all.iter().take(40).filter(|(station, _)| *station == 2).count();
    assert!((18..=20).contains(&of_second), "{of_second} of the first 40 frames");
    assert_eq!(all.len(), 120);
}

#[test]
fn held_senders_frames_are_not_bounded_and_not_copied_until_their_release() {
    let now = Instant::now();
    let mut queue = EgressQueue::new(limits(), 1);
    let payload = Frame::from_slice(&[7; 500]);
    let address = |frame: &Frame| frame.body().next().map(|fragment| fragment.as_ptr());
    for _ in 0..10 {
        assert_eq!(queue.push(&payload, A, true, now), 0);
    }
    assert_eq!((queue.held(A), queue.held(B)), (10, 0));
    assert_eq!(address(&queue.stage(usize::MAX)[0]), address(&payload));
    queue.taken(1, now);
    assert_eq!(queue.held(A), 9);
    // Nine frames are staged, which are copied in any case.
    for _ in 0..20 {
        queue.push(&payload, A, true, now);
    }
    let dropped = queue.release(A);
    assert_eq!(dropped, 20, "the bound of 4,000 bytes");
    assert_eq!(queue.held(A), 0);
    assert_ne!(address(&queue.stage(usize::MAX)[0]), address(&payload));
    assert_eq!(drain(&mut queue, now).len(), 9);
}

#[test]
fn port_that_takes_nothing_is_stuck_and_then_stalled_until_it_does() {
    let start = Instant::now();
    let QueueLimits { hold, stall, .. } = limits();
    let mut queue = EgressQueue::new(limits(), 1);
    assert!(!queue.is_stuck(start) && queue.expire(start + stall) == 0);
    queue.push(&frame(1, 0, 100), A, false, start);
    queue.push(&frame(1, 1, 100), A, false, start);
    assert!(!queue.is_stuck(start) && queue.is_stuck(start + hold));
    let now = start + hold;
    queue.stage(usize::MAX);
    queue.taken(1, now);
    assert!(!queue.is_stuck(now));
    assert_eq!(queue.expire(now + stall - hold), 0);
    assert_eq!(queue.expire(now + stall), 1);
    assert!(queue.is_empty() && queue.is_stuck(now + stall));
    assert_eq!(queue.push(&frame(1, 2, 100), A, false, now + stall), 1);
    queue.end_stall();
    assert_eq!(queue.push(&frame(1, 3, 100), A, false, now + stall), 0);
}

/// Of as many frames as the queue may have, short ones are no less of a burden than long ones: the flood loses its own.
#[test]
fn flow_of_short_frames_neither_delays_nor_displaces_one_of_long_frames() {
    let now = Instant::now();
    let limits = QueueLimits { frames: 200, bytes: 1 << 20, ..QueueLimits::default() };
    let mut queue = EgressQueue::new(limits, 1);
    let mut lost = 0;
    for number in 0..190 {
        lost += queue.push(&frame(1, number, 64), A, false, now);
    }
    for number in 0..8 {
        lost += queue.push(&frame(2, number, 60_000), B, false, now);
    }
    assert_eq!(lost, 0);
    for number in 0..100 {
        assert_eq!(queue.push(&frame(1, number, 64), A, false, now), u64::from(number >= 2));
    }
    let order = drain(&mut queue, now);
    assert_eq!(order.iter().filter(|(station, _)| *station == 2).count(), 8, "none of the others is lost");
    // A short one for each eighth of a long one's bytes, and not one for each 64 bytes.
    let before_last = order.iter().rposition(|(station, _)| *station == 2).unwrap() - 7;
    assert!((50..=70).contains(&before_last), "{before_last}");
}
