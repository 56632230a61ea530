use super::*;
use crate::{Csum, fdb::Mac};

fn frame(len: usize, last: u8) -> Frame {
    let mut bytes = vec![0; len];
    bytes[6..12].copy_from_slice(&[2, 0, 0, 0, 0, last]);
    Frame::from_slice(&bytes)
}

fn take(capture: &Capture) -> Vec<(CapturedFrame, Vec<u8>)> {
    let mut captured = CapturedFrames::default();
    capture.take(&mut captured, Duration::ZERO);
    captured.iter().map(|(frame, bytes)| (frame.clone(), bytes.to_vec())).collect()
}

fn now() -> Instant {
    static START: std::sync::OnceLock<Instant> = std::sync::OnceLock::new();
    *START.get_or_init(Instant::now)
}

#[test]
fn frames_are_kept_up_to_the_snaplen_with_their_offloads() {
    let (sink, capture) = capture(CaptureOptions { snaplen: 200, ..CaptureOptions::default() }, now());
    let mut long = frame(1500, 1);
    let offload = Offload { csum: Some(Csum { start: 34, offset: 16 }), ..Offload::NONE };
    long.set_offload(offload);
    let later = now() + Duration::from_millis(3);
    assert!(sink.record(CaptureDirection::FromPort, [&long].into_iter(), now()));
    assert!(sink.record(CaptureDirection::ToPort, [&frame(60, 2)].into_iter(), later));
    let taken = take(&capture);
    let [(first, bytes), (second, _)] = &taken[..] else { panic!("{taken:?}") };
    assert_eq!((first.len, first.kept, first.offload, first.time), (1500, 200, offload, Duration::ZERO));
    assert_eq!(bytes[..], long.to_vec()[..200]);
    assert_eq!((second.len, second.direction), (60, CaptureDirection::ToPort));
    assert_eq!(second.time, Duration::from_millis(3));
}

#[test]
fn frames_that_find_no_room_are_counted_in_the_next_record() {
    let (sink, capture) = capture(CaptureOptions::default(), now());
    let large = frame(60_000, 1);
    let many = BUFFER / 60_000 + 5;
    sink.record(CaptureDirection::FromPort, std::iter::repeat_n(&large, many), now());
    let taken = take(&capture);
    assert!(taken.len() < many && taken.len() * 60_000 > BUFFER / 2, "{}", taken.len());
    assert_eq!(capture.lost(), (many - taken.len()) as u64);
    sink.record(CaptureDirection::FromPort, [&large].into_iter(), now());
    assert_eq!(take(&capture)[0].0.lost, (many - taken.len()) as u64);
    assert_eq!(capture.lost(), 0);
}

#[test]
fn frames_that_do_not_match_are_left_out() {
    let host = Some(CaptureHost::Mac(Mac::new([2, 0, 0, 0, 0, 2])));
    let filter = CaptureFilter { host, ..CaptureFilter::default() };
    let (sink, capture) = capture(CaptureOptions { filter, ..CaptureOptions::default() }, now());
    let frames = [frame(60, 1), frame(61, 2)];
    sink.record(CaptureDirection::FromPort, frames.iter(), now());
    assert_eq!(take(&capture).iter().map(|(frame, _)| frame.len).collect::<Vec<_>>(), [61]);
}

#[test]
fn each_end_sees_that_the_other_is_gone() {
    let (sink, reader) = capture(CaptureOptions::default(), now());
    sink.record(CaptureDirection::FromPort, [&frame(60, 1)].into_iter(), now());
    drop(sink);
    let mut captured = CapturedFrames::default();
    assert!(reader.take(&mut captured, Duration::MAX), "what was captured is there");
    assert!(!reader.take(&mut captured, Duration::MAX));

    let (sink, reader) = capture(CaptureOptions::default(), now());
    drop(reader);
    assert!(!sink.record(CaptureDirection::FromPort, [&frame(60, 1)].into_iter(), now()));
    assert!(sink.is_closed());
}
