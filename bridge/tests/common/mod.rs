//! Shared code of the bridge's tests: bounded waits, and port pairs.
#![allow(dead_code)] // each test program uses a part of it

pub(crate) mod host;

use std::time::{Duration, Instant};

use bridge::{Batch, Caps, Fragment, Frame, Frames, Interest, Port, port::pair::Pair};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

/// Timeout of every wait.
pub(crate) const BOUND: Duration = Duration::from_secs(20);

/// Makes a fragment of static bytes.
#[allow(unsafe_code)]
pub(crate) fn fragment(bytes: &'static [u8]) -> Fragment {
    // SAFETY: static bytes stay valid.
    unsafe { Fragment::new(bytes.as_ptr(), bytes.len() as u32) }
}

/// Makes a pair of ports that queues up to 1024 frames.
pub(crate) fn pair(caps: Caps) -> (Pair, Pair) {
    Pair::new(caps, 1024).expect("a pair of ports")
}

/// Sends frames into a bridge by the other end of one of its ports, and waits for room where there is none.
pub(crate) fn send(end: &mut Pair, frames: &[Frame]) {
    send_all(end, frames);
}

/// Sends frames by a port, and waits for room where there is none.
pub(crate) fn send_all(end: &mut impl Port, frames: &[Frame]) {
    let start = Instant::now();
    let mut sent = 0;
    while sent < frames.len() {
        assert!(start.elapsed() < BOUND, "{sent} of {} frames sent after {BOUND:?}", frames.len());
        sent += end.send(Frames::of(&frames[sent..])).expect("the bridge has its end");
        end.flush().expect("the bridge has its end");
        if sent < frames.len() {
            wait(end, Interest { input: false, room: true });
        }
    }
}

/// Sleeps until the end has something of what is needed.
fn wait(end: &mut impl Port, needs: Interest) {
    if !end.arm(needs).expect("arm") {
        let fd = &mut [PollFd::new(end.fd(), PollFlags::POLLIN)];
        poll(fd, PollTimeout::from(1000u16)).expect("poll");
    }
}

/// Receives frames from the bridge until there are `count`.
pub(crate) fn take(end: &mut Pair, count: usize) -> Vec<Frame> {
    let mut batch = Batch::new(64);
    let mut got = Vec::new();
    let start = Instant::now();
    while got.len() < count {
        assert!(start.elapsed() < BOUND, "{} of {count} frames after {BOUND:?}", got.len());
        end.recv(&mut batch).expect("the bridge has its end");
        got.extend(batch.frames().iter().cloned());
        batch.clear();
        if got.len() < count {
            wait(end, Interest::INPUT);
        }
    }
    got
}

/// Waits until `condition` returns a value.
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
