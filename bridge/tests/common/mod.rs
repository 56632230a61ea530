//! What several of the bridge's tests need: waiting with a bound, and ends of port pairs.
#![allow(dead_code)] // each test program uses its part

pub(crate) mod host;

use std::time::{Duration, Instant};

use bridge::{Batch, Caps, Frame, Frames, Port, Seg, port::pair::Pair};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

/// Longest that anything here may take.
pub(crate) const BOUND: Duration = Duration::from_secs(20);

/// A segment of bytes that stay.
#[allow(unsafe_code)]
pub(crate) fn seg(bytes: &'static [u8]) -> Seg {
    // SAFETY: they stay for ever.
    unsafe { Seg::new(bytes.as_ptr(), bytes.len() as u32) }
}

/// Both ends of a pair with room for 1024 frames.
pub(crate) fn pair(caps: Caps) -> (Pair, Pair) {
    Pair::new(caps, 1024).expect("a pair of ports")
}

/// Sends finished frames into a bridge by the far end of one of its ports.
pub(crate) fn send(end: &mut Pair, frames: &[Frame]) {
    end.send(Frames::of(frames)).expect("the bridge's end is there");
    end.flush().expect("the bridge's end is there");
}

/// Waits until `count` frames have come out of the bridge.
pub(crate) fn take(end: &mut Pair, count: usize) -> Vec<Frame> {
    let (mut batch, mut got) = (Batch::new(64), Vec::new());
    let start = Instant::now();
    while got.len() < count {
        assert!(start.elapsed() < BOUND, "{} of {count} frames after {BOUND:?}", got.len());
        end.recv(&mut batch).expect("the bridge's end is there");
        got.extend(batch.frames().iter().cloned());
        batch.clear();
        if got.len() < count && !end.arm().expect("arm") {
            let fd = &mut [PollFd::new(end.fd(), PollFlags::POLLIN)];
            poll(fd, PollTimeout::from(1000u16)).expect("poll");
        }
    }
    got
}

/// Waits until `condition` gives something.
pub(crate) fn until<T>(what: &str, mut condition: impl FnMut() -> Option<T>) -> T {
    let start = Instant::now();
    loop {
        if let Some(value) = condition() {
            return value;
        }
        assert!(start.elapsed() < BOUND, "{what}: not within {BOUND:?}");
        std::thread::yield_now();
    }
}
