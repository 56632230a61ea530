//! A token bucket: a rate with a bound on bursts. Time is an argument.

use core::time::Duration;

const NANOS: i128 = 1_000_000_000;

/// Tokens that accrue at a rate, up to a bound. Units are the caller's: events, bytes, frames.
#[derive(Clone, Debug)]
pub struct TokenBucket {
    /// Tokens a second.
    rate: u64,
    /// Capacity in tokens, times 10^9: exact at every rate.
    full: i128,
    /// Below zero after [`TokenBucket::spend`] of more than there was.
    level: i128,
    /// The time of `level`, from the caller's epoch.
    at: Duration,
}

impl TokenBucket {
    /// Makes a bucket with `burst` tokens at time `now`, to which `rate` tokens a second are added.
    pub fn new(rate: u64, burst: u64, now: Duration) -> Self {
        let full = i128::from(burst) * NANOS;
        Self { rate, full, level: full, at: now }
    }

    /// Adds the tokens accrued since the last call; a clock that runs backwards adds nothing.
    fn fill(&mut self, now: Duration) {
        let Some(passed) = now.checked_sub(self.at) else { return };
        self.at = now;
        // At most 2^64 * 2^94: a clock that jumps far ahead fills the bucket.
        let accrued = passed.as_nanos().saturating_mul(u128::from(self.rate));
        let accrued = i128::try_from(accrued).unwrap_or(i128::MAX);
        self.level = self.level.saturating_add(accrued).min(self.full);
    }

    /// Takes `tokens`, or none and `false` when there are fewer.
    pub fn take(&mut self, tokens: u64, now: Duration) -> bool {
        self.fill(now);
        let wanted = i128::from(tokens) * NANOS;
        let enough = wanted <= self.level;
        if enough {
            self.level -= wanted;
        }
        enough
    }

    /// Takes `tokens`, even if there are fewer: the others accrue before any can be taken again.
    pub fn spend(&mut self, tokens: u64, now: Duration) {
        self.fill(now);
        self.level = self.level.saturating_sub(i128::from(tokens) * NANOS);
    }

    /// How long until `tokens` can be taken: zero if they can be now; `None` if they never can.
    pub fn wait(&mut self, tokens: u64, now: Duration) -> Option<Duration> {
        self.fill(now);
        let wanted = i128::from(tokens) * NANOS;
        if wanted <= self.level {
            return Some(Duration::ZERO);
        }
        if wanted > self.full || self.rate == 0 {
            return None;
        }
        let missing = wanted.saturating_sub(self.level).unsigned_abs();
        let nanos = missing.div_ceil(u128::from(self.rate));
        Some(Duration::from_nanos(u64::try_from(nanos).unwrap_or(u64::MAX)))
    }

    /// Whole tokens that can be taken.
    pub fn available(&mut self, now: Duration) -> u64 {
        self.fill(now);
        u64::try_from((self.level / NANOS).max(0)).unwrap_or(u64::MAX)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn at(nanos: u64) -> Duration {
        Duration::from_nanos(nanos)
    }

    proptest! {
        #[test]
        fn tokens_taken_never_exceed_burst_and_rate(
            rate in 0u64..1_000_000,
            burst in 0u64..1_000,
            steps in proptest::collection::vec((0u64..10_000_000, 0u64..100), 1..300),
        ) {
            let mut bucket = TokenBucket::new(rate, burst, at(0));
            let mut now = 0;
            let mut taken = 0i128;
            for (passes, tokens) in steps {
                now += passes;
                if bucket.take(tokens, at(now)) {
                    taken += i128::from(tokens);
                }
                let bound = i128::from(burst) * NANOS + i128::from(now) * i128::from(rate);
                prop_assert!(taken * NANOS <= bound);
            }
        }

        /// A caller that always waits for the time of `wait` gets exactly the rate: nothing is lost to rounding.
        #[test]
        fn waiting_caller_gets_exactly_the_rate(rate in 1u64..10_000_000, tokens in 1u64..50) {
            let mut bucket = TokenBucket::new(rate, tokens, at(0));
            prop_assert!(bucket.take(tokens, at(0)));
            let mut now = Duration::ZERO;
            for _ in 0..100 {
                let wait = bucket.wait(tokens, now).unwrap();
                if !wait.is_zero() {
                    prop_assert!(!bucket.clone().take(tokens, now + wait - at(1)), "the wait is too long");
                }
                now += wait;
                prop_assert!(bucket.take(tokens, now), "the wait is too short");
            }
            let ideal = u128::from(tokens) * 100 * NANOS.unsigned_abs() / u128::from(rate);
            prop_assert!(now.as_nanos() >= ideal && now.as_nanos() <= ideal + 100);
        }

        #[test]
        fn arbitrary_clock_never_panics(
            rate: u64, burst: u64, clock in proptest::collection::vec((any::<u64>(), any::<u32>(), any::<u64>()), 1..20)
        ) {
            let mut bucket = TokenBucket::new(rate, burst, Duration::ZERO);
            for (seconds, nanos, tokens) in clock {
                let now = Duration::new(seconds / 2, nanos % 1_000_000_000);
                bucket.take(tokens, now);
                bucket.spend(tokens, now);
                let _ = bucket.wait(tokens, now);
                prop_assert!(bucket.available(now) <= burst);
            }
        }
    }

    #[test]
    fn what_is_spent_beyond_the_level_accrues_before_more_is_taken() {
        let mut bucket = TokenBucket::new(1000, 10, at(0));
        bucket.spend(30, at(0));
        assert_eq!((bucket.available(at(0)), bucket.wait(1, at(0))), (0, Some(Duration::from_millis(21))));
        assert!(!bucket.take(1, at(20_999_999)) && bucket.take(1, at(21_000_000)));
    }

    #[test]
    fn more_than_the_burst_is_never_available() {
        let mut bucket = TokenBucket::new(10, 5, at(0));
        assert_eq!(bucket.wait(6, at(0)), None);
        assert_eq!(TokenBucket::new(0, 0, at(0)).wait(1, at(0)), None);
    }
}
