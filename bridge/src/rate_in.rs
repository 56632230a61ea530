//! The limit of what a port is sent: a budget, what waits for it at most, and when it may go on. Time is an argument.
//!
//! Frames beyond the budget wait in the port's [`EgressQueue`](crate::egress_queue::EgressQueue) as copies, flow by flow, so that no
//! sender is held for the rate of one receiver. The bounds of that queue are those of its delay: [`DELAY`] of the rate, and at least
//! [`LEAST`] frames, without which TCP would lose several of a few and wait for its timer.

use std::time::{Duration, Instant};

use crate::{
    Frames, QueueLimits,
    rate_limit::{Rate, RateLimit, RateLimits},
};

/// What waits at most, in time of the rate.
const DELAY: Duration = Duration::from_millis(100);
/// Frames of [`FRAME`] bytes that may wait at any rate.
const LEAST: usize = 16;
/// Bytes of an ordinary frame.
const FRAME: usize = 1514;
/// Frames that are to be cut are cut before the queue where fewer of the longest fit into it: TCP would lose too much at once, and
/// others' frames wait for too long.
const LONG_FRAMES: usize = 16;
/// Bytes of the longest frame.
const LONGEST: usize = 64 << 10;

/// What a port is sent.
#[derive(Debug)]
pub(crate) struct RateIn {
    limits: RateLimits,
    limit: RateLimit,
    started: Instant,
    /// When frames that wait may go on; `None` if they need not wait for the rate.
    due: Option<Instant>,
}

impl RateIn {
    /// The limit of these rates from `now` on; `None` where they do not limit.
    pub(crate) fn new(limits: RateLimits, replaces: bool, now: Instant) -> Option<RateIn> {
        let limit = RateLimit::new(limits, replaces, Duration::ZERO)?;
        Some(RateIn { limits, limit, started: now, due: None })
    }

    /// The bounds of the frames that wait, of a bridge whose other ports have the bounds `most`.
    pub(crate) fn queue(&self, most: QueueLimits) -> QueueLimits {
        let of = |rate: Option<Rate>, least: usize, most: usize| {
            let amount = rate.map_or(u64::MAX, |rate| rate.of(DELAY));
            usize::try_from(amount).unwrap_or(usize::MAX).max(least).min(most)
        };
        QueueLimits {
            frames: of(self.limits.packets, LEAST, most.frames),
            bytes: of(self.limits.bytes, LEAST * FRAME, most.bytes),
            ..most
        }
    }

    /// Whether frames that are to be cut into segments are cut before the queue.
    pub(crate) fn cuts(&self, most: QueueLimits) -> bool {
        let QueueLimits { bytes, frames, .. } = self.queue(most);
        bytes < LONG_FRAMES * LONGEST || frames < LONG_FRAMES * LONGEST / FRAME
    }

    /// How many frames may be sent, of whatever length.
    pub(crate) fn admit(&mut self, now: Instant) -> usize {
        self.limit.admit(self.time(now)).unwrap_or(0)
    }

    /// How many of these frames, from the first one on, may be sent now.
    #[inline]
    pub(crate) fn count(&mut self, frames: Frames<'_>, now: Instant) -> usize {
        self.limit.count(frames, self.time(now))
    }

    /// Takes what these frames, which were sent, are on a wire.
    #[inline]
    pub(crate) fn spend(&mut self, frames: Frames<'_>, now: Instant) {
        self.limit.spend(frames, self.time(now));
    }

    /// Sets when the frames that wait may go on, if they must wait for the rate.
    pub(crate) fn wait(&mut self, now: Instant) -> Option<Instant> {
        self.due = self.limit.admit(self.time(now)).err().map(|wait| now + wait);
        self.due
    }

    /// When the frames that wait may go on; `None` if they need not wait for the rate.
    pub(crate) fn due(&self) -> Option<Instant> {
        self.due
    }

    /// Whether the wait has ended by now; it is over then.
    pub(crate) fn is_over(&mut self, now: Instant) -> bool {
        self.due.take_if(|due| *due <= now).is_some()
    }

    /// No frame waits.
    pub(crate) fn end(&mut self) {
        self.due = None;
    }

    fn time(&self, now: Instant) -> Duration {
        now.saturating_duration_since(self.started)
    }
}

#[cfg(test)]
mod tests;
