//! Frames for a guest that has posted no buffers: bounded in number, bytes and time (XSA-392).
//!
//! A payload is copied when it is queued: a guest that does not take its frames must not hold the pages, and so the
//! transmit ring, of those who send to it.

use bridge::Frame;
use bytes::Bytes;
use std::collections::VecDeque;
use std::time::{Duration, Instant};

/// How much may wait, and how long.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Frames.
    pub frames: usize,
    /// Bytes in all.
    pub bytes: usize,
    /// How long a guest may post no buffer before its frames are dropped: Linux's `rx_stall_timeout`.
    pub stall: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self { frames: 256, bytes: 1 << 20, stall: Duration::from_secs(10) }
    }
}

/// The queue.
#[derive(Debug)]
pub struct Backlog {
    limits: Limits,
    queue: VecDeque<Frame>,
    bytes: usize,
    /// When the guest last took a frame, or the first of these began to wait.
    since: Option<Instant>,
    stalled: bool,
}

impl Backlog {
    /// An empty queue.
    pub fn new(limits: Limits) -> Self {
        Self { limits, queue: VecDeque::new(), bytes: 0, since: None, stalled: false }
    }

    /// Whether nothing waits.
    #[inline]
    pub fn is_empty(&self) -> bool {
        self.queue.is_empty()
    }

    /// Whether the guest has stalled: nothing is queued until it posts buffers.
    pub fn is_stalled(&self) -> bool {
        self.stalled
    }

    /// Queues a copy; `false` if there is no room, or the guest has stalled.
    pub fn push(&mut self, frame: &Frame, now: Instant) -> bool {
        let fits = self.queue.len() < self.limits.frames && self.bytes + frame.len() <= self.limits.bytes;
        if self.stalled || !fits {
            return false;
        }
        self.queue.push_back(own(frame));
        self.bytes += frame.len();
        self.since.get_or_insert(now);
        true
    }

    /// The frames in order.
    pub fn iter(&self) -> impl Iterator<Item = &Frame> {
        self.queue.iter()
    }

    /// The guest has taken the first `count` frames.
    pub fn taken(&mut self, count: usize, now: Instant) {
        for frame in self.queue.drain(..count.min(self.queue.len())) {
            self.bytes -= frame.len();
        }
        self.since = (!self.queue.is_empty()).then_some(now);
        self.stalled = false;
    }

    /// The guest has posted buffers: what stalled goes on.
    pub fn revive(&mut self) {
        self.stalled = false;
    }

    /// Drops everything if the guest has stalled for too long; gives how many frames that were.
    pub fn expire(&mut self, now: Instant) -> usize {
        let waited = self.since.map(|since| now.saturating_duration_since(since));
        if waited.is_none_or(|waited| waited < self.limits.stall) {
            return 0;
        }
        self.stalled = true;
        self.clear()
    }

    /// Drops everything; gives how many frames that were.
    pub fn clear(&mut self) -> usize {
        let count = self.queue.len();
        self.queue.clear();
        (self.bytes, self.since) = (0, None);
        count
    }
}

/// A copy that holds nobody's pages.
fn own(frame: &Frame) -> Frame {
    let mut copy = match frame.is_head_only() {
        true => frame.clone(),
        false => Frame::from_bytes(Bytes::from(frame.to_vec())),
    };
    copy.set_offload(*frame.offload());
    copy
}

#[cfg(test)]
mod tests {
    use super::*;

    fn limits() -> Limits {
        Limits { frames: 3, bytes: 1000, stall: Duration::from_secs(10) }
    }

    #[test]
    fn bounds_in_frames_and_bytes() {
        let (now, mut backlog) = (Instant::now(), Backlog::new(limits()));
        assert!(backlog.push(&Frame::from_slice(&[1; 900]), now));
        assert!(!backlog.push(&Frame::from_slice(&[1; 101]), now));
        assert!(backlog.push(&Frame::from_slice(&[1; 50]), now));
        assert!(backlog.push(&Frame::from_slice(&[1; 50]), now));
        assert!(!backlog.push(&Frame::from_slice(&[]), now));
        backlog.taken(1, now);
        assert!(backlog.push(&Frame::from_slice(&[1; 900]), now));
        assert_eq!(backlog.iter().count(), 3);
    }

    #[test]
    fn a_stalled_guest_loses_its_frames_until_it_posts_buffers() {
        let (now, mut backlog) = (Instant::now(), Backlog::new(limits()));
        let frame = Frame::from_slice(&[1; 60]);
        assert!(backlog.push(&frame, now) && backlog.push(&frame, now));
        // Taking one starts the time anew.
        let later = now + Duration::from_secs(9);
        backlog.taken(1, later);
        assert_eq!(backlog.expire(later + Duration::from_secs(9)), 0);
        assert_eq!(backlog.expire(later + Duration::from_secs(10)), 1);
        assert!(backlog.is_stalled() && !backlog.push(&frame, later));
        backlog.revive();
        assert!(backlog.push(&frame, later));
    }

    #[test]
    fn an_empty_queue_never_stalls() {
        let mut backlog = Backlog::new(limits());
        assert_eq!(backlog.expire(Instant::now() + Duration::from_secs(1000)), 0);
        assert!(!backlog.is_stalled());
    }
}
