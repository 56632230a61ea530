//! A token bucket: how often something may happen. Time is passed in, so that it is a value like any other.

use std::time::Duration;

const NANOS: u128 = 1_000_000_000;

/// Tokens that come at a rate and are kept up to a bound. Units are the caller's: events, bytes, frames.
#[derive(Clone, Debug)]
pub struct TokenBucket {
    /// Tokens a second.
    rate: u64,
    /// Tokens it holds, times 10^9: exact at every rate.
    full: u128,
    level: u128,
    /// When `level` was right, since whatever instant the caller counts from.
    at: Duration,
}

impl TokenBucket {
    /// A full bucket of `burst` tokens at time `now`, to which `rate` tokens come a second.
    pub fn new(rate: u64, burst: u64, now: Duration) -> Self {
        let full = u128::from(burst) * NANOS;
        Self { rate, full, level: full, at: now }
    }

    /// Adds what came since the last time; a clock that runs backwards adds nothing.
    fn fill(&mut self, now: Duration) {
        let Some(passed) = now.checked_sub(self.at) else { return };
        self.at = now;
        // At most 2^64 * 2^94: a clock that jumps far ahead fills the bucket.
        let came = passed.as_nanos().saturating_mul(u128::from(self.rate));
        self.level = self.level.saturating_add(came).min(self.full);
    }

    /// Takes `tokens` if that many are there.
    pub fn take(&mut self, tokens: u64, now: Duration) -> bool {
        self.fill(now);
        let wanted = u128::from(tokens) * NANOS;
        let there = wanted <= self.level;
        if there {
            self.level -= wanted;
        }
        there
    }

    /// How long until `tokens` are there: zero if they are; `None` if they never will be.
    pub fn wait(&mut self, tokens: u64, now: Duration) -> Option<Duration> {
        self.fill(now);
        let wanted = u128::from(tokens) * NANOS;
        if wanted <= self.level {
            return Some(Duration::ZERO);
        }
        if wanted > self.full || self.rate == 0 {
            return None;
        }
        let nanos = (wanted - self.level).div_ceil(u128::from(self.rate));
        Some(Duration::from_nanos(u64::try_from(nanos).unwrap_or(u64::MAX)))
    }

    /// Whole tokens that are there.
    #[cfg(test)]
    fn left(&mut self, now: Duration) -> u64 {
        self.fill(now);
        u64::try_from(self.level / NANOS).unwrap_or(u64::MAX)
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
        /// Never more than the burst and what came since, whatever is asked for when.
        #[test]
        fn never_more_than_rate_and_burst(
            rate in 0u64..1_000_000,
            burst in 0u64..1_000,
            steps in proptest::collection::vec((0u64..10_000_000, 0u64..100), 1..300),
        ) {
            let mut bucket = TokenBucket::new(rate, burst, at(0));
            let (mut now, mut taken) = (0, 0u128);
            for (passes, tokens) in steps {
                now += passes;
                if bucket.take(tokens, at(now)) {
                    taken += u128::from(tokens);
                }
                let bound = u128::from(burst) * NANOS + u128::from(now) * u128::from(rate);
                prop_assert!(taken * NANOS <= bound);
            }
        }

        /// One who always waits as told gets exactly the rate: nothing is lost to rounding.
        #[test]
        fn the_patient_gets_the_rate(rate in 1u64..10_000_000, tokens in 1u64..50) {
            let mut bucket = TokenBucket::new(rate, tokens, at(0));
            prop_assert!(bucket.take(tokens, at(0)));
            let mut now = Duration::ZERO;
            for _ in 0..100 {
                let wait = bucket.wait(tokens, now).unwrap();
                if !wait.is_zero() {
                    prop_assert!(!bucket.clone().take(tokens, now + wait - at(1)), "told to wait too long");
                }
                now += wait;
                prop_assert!(bucket.take(tokens, now), "told to wait too briefly");
            }
            let ideal = u128::from(tokens) * 100 * NANOS / u128::from(rate);
            prop_assert!(now.as_nanos() >= ideal && now.as_nanos() <= ideal + 100);
        }

        #[test]
        fn no_clock_makes_it_panic(
            rate: u64, burst: u64, clock in proptest::collection::vec((any::<u64>(), any::<u32>(), any::<u64>()), 1..20)
        ) {
            let mut bucket = TokenBucket::new(rate, burst, Duration::ZERO);
            for (seconds, nanos, tokens) in clock {
                let now = Duration::new(seconds / 2, nanos % 1_000_000_000);
                bucket.take(tokens, now);
                let _ = bucket.wait(tokens, now);
                prop_assert!(bucket.left(now) <= burst);
            }
        }
    }

    #[test]
    fn what_never_fits_is_never_there() {
        let mut bucket = TokenBucket::new(10, 5, at(0));
        assert_eq!(bucket.wait(6, at(0)), None);
        assert_eq!(TokenBucket::new(0, 0, at(0)).wait(1, at(0)), None);
    }
}
