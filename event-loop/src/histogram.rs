//! A histogram of durations that one thread writes and any other reads.
//!
//! Each octave has eight buckets of equal width, as in HdrHistogram with one significant digit. A quantile is given as its
//! bucket's upper end: never too low, and too high by at most an eighth of the duration from 1.024 us on, and by less than
//! 128 ns below that. The longest duration is kept exactly.

use core::array;
use core::time::Duration;

use crate::Counter;

/// Nanoseconds of the narrowest buckets, as a power of two.
const UNIT: u32 = 7;
/// Buckets of an octave, as a power of two.
const SUB: u32 = 3;
/// Octaves above the first [`SUB`] of linear buckets: up to 2^37 ns, which is 137 s.
const OCTAVES: usize = 27;
/// Buckets. The last one has all longer durations too.
const BUCKETS: usize = (OCTAVES + 1) << SUB;

/// Durations counted by length, with one writer at a time.
///
/// ```
/// use core::time::Duration;
/// use event_loop::Histogram;
///
/// let latency = Histogram::default();
/// for microseconds in 1..=100 {
///     latency.record(Duration::from_micros(microseconds));
/// }
/// let read = latency.read();
/// let median = read.quantile(1, 2).unwrap().as_nanos();
/// assert!((50_000..50_000 * 9 / 8).contains(&median));
/// assert_eq!((read.count(), read.max()), (100, Duration::from_micros(100)));
/// ```
#[derive(Debug)]
pub struct Histogram {
    buckets: [Counter; BUCKETS],
    max_ns: Counter,
}

impl Default for Histogram {
    fn default() -> Self {
        Self { buckets: array::from_fn(|_| Counter::default()), max_ns: Counter::default() }
    }
}

impl Histogram {
    /// Counts a duration.
    #[inline]
    pub fn record(&self, duration: Duration) {
        self.record_many(duration, 1);
    }

    /// Counts a duration so many times, which costs what one does.
    #[inline]
    pub fn record_many(&self, duration: Duration, times: u64) {
        let ns = u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX);
        self.buckets[bucket(ns)].add(times);
        self.max_ns.raise(ns);
    }

    /// Reads the counts.
    pub fn read(&self) -> Distribution {
        Distribution { counts: array::from_fn(|n| self.buckets[n].get()), max_ns: self.max_ns.get() }
    }
}

/// The counts of one histogram, or the sums of several.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Distribution {
    counts: [u64; BUCKETS],
    max_ns: u64,
}

impl Default for Distribution {
    fn default() -> Self {
        Self { counts: [0; BUCKETS], max_ns: 0 }
    }
}

impl Distribution {
    /// Durations counted.
    pub fn count(&self) -> u64 {
        self.counts.iter().sum()
    }

    /// The longest duration; zero if there is none.
    pub fn max(&self) -> Duration {
        Duration::from_nanos(self.max_ns)
    }

    /// A duration that `numerator` of `denominator` do not exceed; `None` if none is counted. How exact it is, the
    /// [module](self) says.
    pub fn quantile(&self, numerator: u32, denominator: u32) -> Option<Duration> {
        let count = u128::from(self.count());
        let rank = (count * u128::from(numerator)).div_ceil(u128::from(denominator.max(1))).max(1);
        let mut below = 0;
        let reached = self.counts.iter().position(|&n| {
            below += u128::from(n);
            below >= rank
        });
        reached.map(|at| {
            Duration::from_nanos(if at + 1 == BUCKETS { self.max_ns } else { end(at).min(self.max_ns) })
        })
    }

    /// Adds the durations of another.
    pub fn merge(&mut self, other: &Distribution) {
        for (count, more) in self.counts.iter_mut().zip(&other.counts) {
            *count = count.saturating_add(*more);
        }
        self.max_ns = self.max_ns.max(other.max_ns);
    }
}

/// The bucket of a duration in nanoseconds.
#[inline]
fn bucket(ns: u64) -> usize {
    let units = ns >> UNIT;
    // Linear up to the first whole octave; then the highest bit gives the octave, and the next ones the bucket in it.
    let octave = (u64::BITS - units.leading_zeros()).saturating_sub(SUB + 1);
    let index = (octave << SUB) as usize + (units >> octave) as usize;
    index.min(BUCKETS - 1)
}

/// The longest duration of a bucket in nanoseconds.
fn end(bucket: usize) -> u64 {
    let octave = (bucket >> SUB).saturating_sub(1);
    let next = (bucket - (octave << SUB) + 1) as u64;
    (next << octave << UNIT) - 1
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn buckets_follow_each_other_without_gap() {
        assert_eq!((bucket(0), bucket(127), bucket(128), bucket(1023)), (0, 0, 1, 7));
        for at in 0..BUCKETS - 1 {
            assert_eq!((bucket(end(at)), bucket(end(at) + 1)), (at, at + 1), "{at}");
        }
        assert_eq!(bucket(u64::MAX), BUCKETS - 1);
        assert!(end(BUCKETS - 1) > 137_000_000_000);
    }

    proptest! {
        #[test]
        fn quantile_exceeds_the_exact_one_by_an_eighth_at_most(
            mut all in proptest::collection::vec(0u64..60_000_000_000, 1..200),
            numerator in 1u32..=1000,
        ) {
            let histogram = Histogram::default();
            all.iter().for_each(|&ns| histogram.record(Duration::from_nanos(ns)));
            all.sort_unstable();
            let exact = all[(all.len() * numerator as usize).div_ceil(1000) - 1];
            let found = histogram.read().quantile(numerator, 1000).unwrap().as_nanos() as u64;
            prop_assert!(found >= exact && found - exact <= (exact / 8).max(127), "{exact} {found}");
            prop_assert_eq!(histogram.read().max(), Duration::from_nanos(*all.last().unwrap()));
        }
    }

    #[test]
    fn durations_beyond_the_last_bucket_have_the_exact_maximum() {
        let histogram = Histogram::default();
        histogram.record(Duration::MAX);
        assert_eq!(histogram.read().quantile(1, 2), Some(Duration::from_nanos(u64::MAX)));
    }

    #[test]
    fn merged_distributions_have_the_durations_of_both() {
        let [mut one, two] = [(90, 10), (10, 1000)].map(|(count, us)| {
            let histogram = Histogram::default();
            histogram.record_many(Duration::from_micros(us), count);
            histogram.read()
        });
        assert_eq!(Distribution::default().quantile(1, 2), None);
        one.merge(&two);
        assert_eq!((one.count(), one.max()), (100, Duration::from_millis(1)));
        assert!(one.quantile(9, 10).unwrap() < Duration::from_micros(12));
        assert_eq!(one.quantile(91, 100), Some(Duration::from_millis(1)));
    }
}
