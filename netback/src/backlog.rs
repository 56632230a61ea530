//! Frames for a guest that has posted no buffers: bounded in number, bytes and time (XSA-392).
//!
//! A payload is copied when it is queued: otherwise a guest that takes no frames would keep the pages of other guests
//! mapped, and so their requests unanswered.

use bridge::Frame;
use bytes::Bytes;
use std::collections::VecDeque;
use std::time::{Duration, Instant};

/// Bounds of a backlog.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Most frames.
    pub frames: usize,
    /// Most bytes of all frames.
    pub bytes: usize,
    /// How long a guest may take no frame before its frames are dropped: Linux's `rx_stall_timeout`.
    pub stall: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self { frames: 256, bytes: 1 << 20, stall: Duration::from_secs(10) }
    }
}

/// A queue of frames for one guest.
#[derive(Debug)]
pub struct Backlog {
    limits: Limits,
    queue: VecDeque<Frame>,
    bytes: usize,
    /// When the guest last took a frame, or else when the first frame was queued. `None` while the queue is empty.
    waiting_since: Option<Instant>,
    stalled: bool,
}

impl Backlog {
    /// An empty queue.
    pub fn new(limits: Limits) -> Self {
        Self { limits, queue: VecDeque::new(), bytes: 0, waiting_since: None, stalled: false }
    }

    /// Whether there are no frames.
    #[inline]
    pub fn is_empty(&self) -> bool {
        self.queue.is_empty()
    }

    /// Whether the guest has stalled: no frame is queued until it posts buffers.
    pub fn is_stalled(&self) -> bool {
        self.stalled
    }

    /// Queues a copy of a frame; `false` if a bound is exceeded or the guest has stalled.
    pub fn push(&mut self, frame: &Frame, now: Instant) -> bool {
        let fits = self.queue.len() < self.limits.frames && self.bytes + frame.len() <= self.limits.bytes;
        if self.stalled || !fits {
            return false;
        }
        self.queue.push_back(copy_frame(frame));
        self.bytes += frame.len();
        self.waiting_since.get_or_insert(now);
        true
    }

    /// The frames in order.
    pub fn iter(&self) -> impl Iterator<Item = &Frame> {
        self.queue.iter()
    }

    /// Removes the first `count` frames, which were sent to the guest.
    pub fn remove_first(&mut self, count: usize, now: Instant) {
        for frame in self.queue.drain(..count.min(self.queue.len())) {
            self.bytes -= frame.len();
        }
        self.waiting_since = (!self.queue.is_empty()).then_some(now);
        self.stalled = false;
    }

    /// Ends a stall: the guest has posted buffers.
    pub fn end_stall(&mut self) {
        self.stalled = false;
    }

    /// Drops all frames if the guest has taken none for [`Limits::stall`]; returns how many were dropped.
    pub fn expire(&mut self, now: Instant) -> usize {
        let waited = self.waiting_since.map(|since| now.saturating_duration_since(since));
        if waited.is_none_or(|waited| waited < self.limits.stall) {
            return 0;
        }
        self.stalled = true;
        self.clear()
    }

    /// Drops all frames; returns how many there were.
    pub fn clear(&mut self) -> usize {
        let count = self.queue.len();
        self.queue.clear();
        self.bytes = 0;
        self.waiting_since = None;
        count
    }
}

/// A copy of a frame with a payload of its own, which pins no pages.
fn copy_frame(frame: &Frame) -> Frame {
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
    fn push_beyond_a_bound_of_frames_or_bytes_fails() {
        let now = Instant::now();
        let mut backlog = Backlog::new(limits());
        assert!(backlog.push(&Frame::from_slice(&[1; 900]), now));
        assert!(!backlog.push(&Frame::from_slice(&[1; 101]), now));
        assert!(backlog.push(&Frame::from_slice(&[1; 50]), now));
        assert!(backlog.push(&Frame::from_slice(&[1; 50]), now));
        assert!(!backlog.push(&Frame::from_slice(&[]), now));
        backlog.remove_first(1, now);
        assert!(backlog.push(&Frame::from_slice(&[1; 900]), now));
        assert_eq!(backlog.iter().count(), 3);
    }

    #[test]
    fn stalled_backlog_is_dropped_and_takes_frames_again_once_the_stall_ends() {
        let now = Instant::now();
        let mut backlog = Backlog::new(limits());
        let frame = Frame::from_slice(&[1; 60]);
        assert!(backlog.push(&frame, now) && backlog.push(&frame, now));
        // The timeout starts again with each frame that the guest takes.
        let later = now + Duration::from_secs(9);
        backlog.remove_first(1, later);
        assert_eq!(backlog.expire(later + Duration::from_secs(9)), 0);
        assert_eq!(backlog.expire(later + Duration::from_secs(10)), 1);
        assert!(backlog.is_stalled() && !backlog.push(&frame, later));
        backlog.end_stall();
        assert!(backlog.push(&frame, later));
    }

    #[test]
    fn empty_backlog_never_stalls() {
        let mut backlog = Backlog::new(limits());
        assert_eq!(backlog.expire(Instant::now() + Duration::from_secs(1000)), 0);
        assert!(!backlog.is_stalled());
    }
}
