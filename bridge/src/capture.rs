//! Copies of the frames that cross a port, for whoever looks at them.
//!
//! The port's worker puts copies into a bounded buffer, and another thread takes them out as fast as it can. What finds no room is
//! counted and left out: a slow reader loses records, and the port no frames.

mod filter;

use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

pub use filter::{CaptureFilter, CaptureHost};

use crate::{FragmentRef, Frame, Frames, Offload, egress_queue::copy_of};

/// Bytes of frames that wait in a buffer at most, each record counted with [`RECORD`] more.
const BUFFER: usize = 2 << 20;

/// What a record takes beside its bytes.
const RECORD: usize = size_of::<CapturedFrame>();

/// Captures of one port at a time.
pub(crate) const MAX_CAPTURES: usize = 4;

/// Which way a frame crosses its port.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CaptureDirection {
    /// From the port into the bridge: what a guest sends.
    FromPort,
    /// From the bridge to the port: what a guest receives.
    ToPort,
}

/// Which frames of a port are captured, and how much of each.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CaptureOptions {
    /// The most bytes of a frame that are kept, one at least.
    pub snaplen: u32,
    /// Frames that it does not match are left out.
    pub filter: CaptureFilter,
}

impl Default for CaptureOptions {
    /// All of every frame.
    fn default() -> CaptureOptions {
        CaptureOptions { snaplen: 256 << 10, filter: CaptureFilter::default() }
    }
}

/// One frame as it crossed the port.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CapturedFrame {
    /// When, since the capture began: of the batch that it was in.
    pub time: Duration,
    /// Which way.
    pub direction: CaptureDirection,
    /// The frame's length in bytes.
    pub len: u32,
    /// How many of them were kept.
    pub kept: u32,
    /// The work on the frame that was not done yet.
    pub offload: Offload,
    /// Frames before this one that were left out for want of room, since the record before it.
    pub lost: u64,
}

/// What a buffer has at one time: frames, and their bytes one after the other.
#[derive(Debug, Default)]
pub struct CapturedFrames {
    frames: Vec<CapturedFrame>,
    bytes: Vec<u8>,
}

impl CapturedFrames {
    /// The frames in their order, each with the bytes that were kept of it.
    pub fn iter(&self) -> impl Iterator<Item = (&CapturedFrame, &[u8])> {
        let mut rest = &self.bytes[..];
        self.frames.iter().map(move |frame| {
            let (bytes, after) = rest.split_at(frame.kept as usize);
            rest = after;
            (frame, bytes)
        })
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.frames.is_empty()
    }

    fn clear(&mut self) {
        self.frames.clear();
        self.bytes.clear();
    }

    fn size(&self) -> usize {
        self.bytes.len() + self.frames.len() * RECORD
    }
}

#[derive(Debug, Default)]
struct State {
    captured: CapturedFrames,
    /// Frames left out since the last record.
    lost: u64,
    /// One of both ends is gone.
    is_closed: bool,
}

#[derive(Debug, Default)]
struct Shared {
    state: Mutex<State>,
    changed: Condvar,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn close(&self) {
        self.lock().is_closed = true;
        self.changed.notify_all();
    }
}

/// Both ends of a capture.
fn capture(options: CaptureOptions, now: Instant) -> (CaptureSink, Capture) {
    let shared = Arc::new(Shared::default());
    let capture = Capture { shared: shared.clone() };
    (CaptureSink { options, started: now, shared }, capture)
}

/// The captures of a port, at its worker.
#[derive(Debug, Default)]
pub(crate) struct Captures {
    sinks: Vec<CaptureSink>,
    /// Copies of the frames that the port is being sent.
    staged: Vec<Frame>,
}

impl Captures {
    /// Begins a capture; `None` if there are [`MAX_CAPTURES`] already.
    pub(crate) fn add(&mut self, options: CaptureOptions, now: Instant) -> Option<Capture> {
        self.sinks.retain(|sink| !sink.is_closed());
        if self.sinks.len() >= MAX_CAPTURES {
            return None;
        }
        let (sink, capture) = capture(options, now);
        self.sinks.push(sink);
        Some(capture)
    }

    /// Copies frames before the port is sent them: it may give away the pages that they are in.
    #[inline]
    pub(crate) fn stage(&mut self, frames: Frames<'_>) {
        if !self.sinks.is_empty() {
            self.staged.clear();
            self.staged.extend(frames.iter().map(copy_of));
        }
    }

    /// The port has taken the first `count` frames that were staged: they cross it now. The others are forgotten.
    #[inline]
    pub(crate) fn sent(&mut self, count: usize, now: Instant) {
        if !self.staged.is_empty() {
            let staged = std::mem::take(&mut self.staged);
            self.record(CaptureDirection::ToPort, Frames::of(&staged), count, now);
        }
    }

    /// Copies the first `count` of these frames, which cross the port now.
    #[inline]
    pub(crate) fn record(
        &mut self,
        direction: CaptureDirection,
        frames: Frames<'_>,
        count: usize,
        now: Instant,
    ) {
        if !self.sinks.is_empty() && count > 0 {
            self.sinks.retain(|sink| sink.record(direction, frames.iter().take(count), now));
        }
    }
}

/// The end of a capture at its port.
#[derive(Debug)]
struct CaptureSink {
    options: CaptureOptions,
    started: Instant,
    shared: Arc<Shared>,
}

impl CaptureSink {
    /// Whether the other end is gone.
    fn is_closed(&self) -> bool {
        self.shared.lock().is_closed
    }

    /// Copies frames that cross the port now; `false` if the other end is gone.
    fn record<'f>(
        &self,
        direction: CaptureDirection,
        frames: impl Iterator<Item = &'f Frame>,
        now: Instant,
    ) -> bool {
        let time = now.saturating_duration_since(self.started);
        let mut state = self.shared.lock();
        let was_empty = state.captured.is_empty();
        for frame in frames.filter(|frame| self.options.filter.matches(frame.head())) {
            let kept = frame.len().min(self.options.snaplen.max(1) as usize);
            if state.captured.size() + RECORD + kept > BUFFER {
                state.lost += 1;
                continue;
            }
            let lost = std::mem::take(&mut state.lost);
            let record = CapturedFrame {
                time,
                direction,
                len: frame.len() as u32,
                kept: kept as u32,
                offload: *frame.offload(),
                lost,
            };
            state.captured.frames.push(record);
            copy(frame.range(0, kept), kept, &mut state.captured.bytes);
        }
        let is_closed = state.is_closed;
        let is_news = was_empty && !state.captured.is_empty();
        drop(state);
        if is_news {
            self.shared.changed.notify_one();
        }
        !is_closed
    }
}

/// Appends `len` bytes.
fn copy<'f>(fragments: impl Iterator<Item = FragmentRef<'f>>, len: usize, to: &mut Vec<u8>) {
    let start = to.len();
    to.resize(start + len, 0);
    let mut at = start;
    for fragment in fragments {
        at += fragment.copy_to(&mut to[at..]);
    }
}

impl Drop for CaptureSink {
    fn drop(&mut self) {
        self.shared.close();
    }
}

/// A capture of a port's frames, which ends when this is dropped or the port is removed.
#[derive(Debug)]
pub struct Capture {
    shared: Arc<Shared>,
}

impl Capture {
    /// Waits for frames, at most for `timeout`, and takes all that there are into `captured`, which is cleared before. `false`
    /// once the port is removed and everything was taken.
    pub fn take(&self, captured: &mut CapturedFrames, timeout: Duration) -> bool {
        captured.clear();
        let state = self.shared.lock();
        let waits = |state: &mut State| state.captured.is_empty() && !state.is_closed;
        let waited = self.shared.changed.wait_timeout_while(state, timeout, waits);
        let (mut state, _) = waited.unwrap_or_else(PoisonError::into_inner);
        std::mem::swap(&mut state.captured, captured);
        !state.is_closed || !captured.is_empty()
    }

    /// Frames that were left out for want of room since the last record: none follows that says so.
    pub fn lost(&self) -> u64 {
        self.shared.lock().lost
    }
}

impl Drop for Capture {
    fn drop(&mut self) {
        self.shared.close();
    }
}

#[cfg(test)]
mod tests;
