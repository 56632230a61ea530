//! A bound on events that lead to no work. Time is an argument.
//!
//! A peer may send events without end (XSA-332, XSA-391), and each makes its receiver look for work. A guard counts
//! the events that led to none and, once there were too many, answers how long to mask their source. The receiver
//! looks for work once more when the mask ends, so that nothing is lost.

use crate::TokenBucket;
use core::time::Duration;

/// Spurious events a second that are tolerated: an honest peer sends some, as its event can arrive while the receiver
/// is already at work.
pub const SPURIOUS_RATE: u64 = 1_000;
/// Spurious events in a burst that are tolerated.
pub const SPURIOUS_BURST: u64 = 1_000;

/// How long to mask a source that has no tolerance at all: its rate is 0, so that no token ever comes.
const WITHOUT_TOLERANCE: Duration = Duration::from_secs(1);

/// Counts spurious events, those taken without work, against a tolerance.
///
/// ```
/// use core::time::Duration;
/// use event_loop::{StormGuard, TokenBucket};
///
/// let now = Duration::ZERO;
/// let mut guard = StormGuard::with_tolerance(TokenBucket::new(10, 1, now));
/// guard.taken();
/// guard.worked(true);
/// assert_eq!(guard.pause(now), None);
/// // Two events without work, of which one is tolerated.
/// guard.taken();
/// assert_eq!(guard.pause(now), None);
/// guard.taken();
/// assert_eq!(guard.pause(now), Some(Duration::from_millis(100)));
/// assert_eq!(guard.spurious(), 2);
/// ```
#[derive(Clone, Debug)]
pub struct StormGuard {
    /// Each spurious event costs a token.
    tolerance: TokenBucket,
    /// An event was taken since the last [`StormGuard::pause`].
    taken: bool,
    /// There was work since then.
    worked: bool,
    spurious: u64,
}

impl Default for StormGuard {
    /// Tolerates [`SPURIOUS_RATE`] and [`SPURIOUS_BURST`].
    fn default() -> Self {
        Self::with_tolerance(TokenBucket::new(SPURIOUS_RATE, SPURIOUS_BURST, Duration::ZERO))
    }
}

impl StormGuard {
    /// Makes a guard; each spurious event costs a token of `tolerance`.
    pub fn with_tolerance(tolerance: TokenBucket) -> Self {
        Self { tolerance, taken: false, worked: false, spurious: 0 }
    }

    /// Records that an event was taken.
    #[inline]
    pub fn taken(&mut self) {
        self.taken = true;
    }

    /// Records whether there was any work. To be called any number of times.
    #[inline]
    pub fn worked(&mut self, any: bool) {
        self.worked |= any;
    }

    /// Accounts, at time `now`, for the events taken since the last call, before the receiver sleeps. Returns how long
    /// to mask the source if it exceeded its tolerance.
    pub fn pause(&mut self, now: Duration) -> Option<Duration> {
        let worked = core::mem::take(&mut self.worked);
        let spurious = core::mem::take(&mut self.taken) && !worked;
        if !spurious {
            return None;
        }
        self.spurious += 1;
        if self.tolerance.take(1, now) {
            return None;
        }
        Some(self.tolerance.wait(1, now).unwrap_or(WITHOUT_TOLERANCE))
    }

    /// Spurious events so far.
    pub fn spurious(&self) -> u64 {
        self.spurious
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: Duration = Duration::from_secs(5);

    #[test]
    fn guard_masks_spurious_events_beyond_its_tolerance_only() {
        let mut guard = StormGuard::with_tolerance(TokenBucket::new(10, 3, NOW));
        let mut event = |any: bool, now: Duration| {
            guard.taken();
            guard.worked(any);
            guard.pause(now)
        };
        for _ in 0..100 {
            assert_eq!(event(true, NOW), None);
        }
        for _ in 0..3 {
            assert_eq!(event(false, NOW), None);
        }
        let pause = event(false, NOW).expect("too many");
        assert_eq!(pause, Duration::from_millis(100));
        assert_eq!(event(false, NOW + pause), None);
        assert_eq!(guard.spurious(), 5);
        assert_eq!(guard.pause(NOW), None, "no event was taken, so none was spurious");
    }

    #[test]
    fn guard_without_tolerance_masks_for_a_second() {
        let mut guard = StormGuard::with_tolerance(TokenBucket::new(0, 0, NOW));
        guard.taken();
        assert_eq!(guard.pause(NOW), Some(Duration::from_secs(1)));
    }
}
