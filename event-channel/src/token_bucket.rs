//! A token bucket: bounds how often something may happen. The caller passes the time in, so that it is testable.

use std::time::Duration;

const NANOS: u128 = 1_000_000_000;

/// Tokens that are added at a rate and kept up to a bound. The unit is the caller's: events, bytes, frames.
///
/// ```
/// use event_channel::TokenBucket;
/// use std::time::Duration;
///
/// // 10 events a second, at most 2 at once.
/// let mut bucket = TokenBucket::new(10, 2, Duration::ZERO);
/// assert!(bucket.take(2, Duration::ZERO));
/// assert!(!bucket.take(1, Duration::ZERO));
/// assert_eq!(bucket.wait(1, Duration::ZERO), Some(Duration::from_millis(100)));
/// assert!(bucket.take(1, Duration::from_millis(100)));
/// ```
#[derive(Clone, Debug)]
pub struct TokenBucket {
    /// Tokens a second.
    rate: u64,
    /// The most tokens it holds, times 10^9: exact at every rate.
    full: u128,
    /// Tokens it holds, times 10^9.
    level: u128,
    /// The time of `level`, since the instant from which the caller counts.
    at: Duration,
}

impl TokenBucket {
    /// Creates a full bucket of `burst` tokens at time `now`, to which `rate` tokens are added a second.
    pub fn new(rate: u64, burst: u64, now: Duration) -> Self {
        let full = u128::from(burst) * NANOS;
        Self { rate, full, level: full, at: now }
    }

    /// Adds the tokens of the time since the last call; a clock that runs backwards adds none.
    fn fill(&mut self, now: Duration) {
        let Some(elapsed) = now.checked_sub(self.at) else { return };
        self.at = now;
        // At most 2^64 * 2^94: a clock that jumps far ahead fills the bucket.
        let added = elapsed.as_nanos().saturating_mul(u128::from(self.rate));
        self.level = self.level.saturating_add(added).min(self.full);
    }

    /// Takes `tokens` if the bucket holds that many; `false`, and none taken, otherwise.
    pub fn take(&mut self, tokens: u64, now: Duration) -> bool {
        self.fill(now);
        let wanted = u128::from(tokens) * NANOS;
        let enough = wanted <= self.level;
        if enough {
            self.level -= wanted;
        }
        enough
    }

    /// Returns how long until the bucket holds `tokens`: zero if it does now; `None` if it never will.
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
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn at(nanos: u64) -> Duration {
        Duration::from_nanos(nanos)
    }

    /// Whole tokens that the bucket holds.
    fn available(bucket: &mut TokenBucket, now: Duration) -> u64 {
        bucket.fill(now);
        u64::try_from(bucket.level / NANOS).unwrap_or(u64::MAX)
    }

    proptest! {
        #[test]
        fn bucket_in_any_use_gives_at_most_burst_plus_rate(
            rate in 0u64..1_000_000,
            burst in 0u64..1_000,
            steps in proptest::collection::vec((0u64..10_000_000, 0u64..100), 1..300),
        ) {
            let mut bucket = TokenBucket::new(rate, burst, at(0));
            let mut now = 0;
            let mut taken = 0u128;
            for (elapsed, tokens) in steps {
                now += elapsed;
                if bucket.take(tokens, at(now)) {
                    taken += u128::from(tokens);
                }
                let bound = u128::from(burst) * NANOS + u128::from(now) * u128::from(rate);
                prop_assert!(taken * NANOS <= bound);
            }
        }

        /// Nothing is lost to rounding.
        #[test]
        fn bucket_whose_user_waits_as_returned_gives_exactly_its_rate(rate in 1u64..10_000_000, tokens in 1u64..50) {
            let mut bucket = TokenBucket::new(rate, tokens, at(0));
            prop_assert!(bucket.take(tokens, at(0)));
            let mut now = Duration::ZERO;
            for _ in 0..100 {
                let wait = bucket.wait(tokens, now).unwrap();
                if !wait.is_zero() {
                    prop_assert!(!bucket.clone().take(tokens, now + wait - at(1)), "the returned wait is too long");
                }
                now += wait;
                prop_assert!(bucket.take(tokens, now), "the returned wait is too short");
            }
            let ideal = u128::from(tokens) * 100 * NANOS / u128::from(rate);
            prop_assert!(now.as_nanos() >= ideal && now.as_nanos() <= ideal + 100);
        }

        #[test]
        fn bucket_with_any_clock_does_not_panic(
            rate: u64, burst: u64, clock in proptest::collection::vec((any::<u64>(), any::<u32>(), any::<u64>()), 1..20)
        ) {
            let mut bucket = TokenBucket::new(rate, burst, Duration::ZERO);
            for (seconds, nanos, tokens) in clock {
                let now = Duration::new(seconds / 2, nanos % 1_000_000_000);
                bucket.take(tokens, now);
                let _ = bucket.wait(tokens, now);
                prop_assert!(available(&mut bucket, now) <= burst);
            }
        }
    }

    #[test]
    fn wait_for_more_than_the_bucket_can_hold_is_none() {
        let mut bucket = TokenBucket::new(10, 5, at(0));
        assert_eq!(bucket.wait(6, at(0)), None);
        assert_eq!(TokenBucket::new(0, 0, at(0)).wait(1, at(0)), None);
        assert_eq!(available(&mut bucket, at(0)), 5);
    }
}
