//! How sure a ratio is that was measured in pairs.
//!
//! The estimate is the median of the pairs' ratios. Its confidence interval is that of the sign test: if `n` ratios scatter
//! around the true median, each falls below it with a probability of one half, so that the true median lies between the
//! `k`-th lowest and the `k`-th highest of them with a probability that the binomial distribution gives (Conover,
//! "Practical Nonparametric Statistics", 3rd edition, section 3.2; Hahn and Meeker, "Statistical Intervals", section 5.2).
//! `k` is the greatest for which that is still at least [`CONFIDENCE`].
//!
//! No distribution is assumed, and the `k - 1` most extreme pairs on each side have no influence at all: benchmarks scatter
//! unevenly, and another program may disturb any single pair by as much as it likes. (The intervals of Student's t and of
//! Wilcoxon's signed-rank test are narrower where nothing disturbs, but of eleven pairs a single one can move them anywhere.)
//! Nothing is drawn at random: the same pairs always give the same interval.

/// How likely an interval is to hold the true ratio, at least.
pub const CONFIDENCE: f64 = 0.95;

/// A ratio and the interval that it is in with a probability of at least [`CONFIDENCE`].
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct Interval {
    /// Median of the pairs' ratios.
    pub ratio: f64,
    /// Lower end; 0 with fewer than six pairs, which say too little.
    pub low: f64,
    /// Upper end; infinite with fewer than six pairs.
    pub high: f64,
}

impl Interval {
    /// The interval of the ratio that these ratios of pairs scatter around.
    ///
    /// # Panics
    /// If there is none, or if one is not a positive, finite number.
    pub fn of(ratios: &[f64]) -> Self {
        assert!(!ratios.is_empty() && ratios.iter().all(|ratio| *ratio > 0.0 && ratio.is_finite()));
        let mut ratios = ratios.to_vec();
        ratios.sort_by(f64::total_cmp);
        let count = ratios.len();
        // Of an even number, between the two in the middle: equally far from both as a factor.
        let ratio = (ratios[(count - 1) / 2] * ratios[count / 2]).sqrt();
        let (low, high) = match rank(count) {
            0 => (0.0, f64::INFINITY),
            rank => (ratios[rank - 1], ratios[count - rank]),
        };
        Self { ratio, low, high }
    }
}

/// Which ratio, counted from either end, bounds the interval: the greatest `k` for which fewer than `k` of `n` ratios fall on
/// one side of the true median with a probability of no more than half of what [`CONFIDENCE`] leaves; 0 if there is none.
fn rank(n: usize) -> usize {
    let mut rank = 0;
    let mut exactly = 0.5f64.powi(n as i32);
    let mut fewer = exactly;
    while fewer <= (1.0 - CONFIDENCE) / 2.0 {
        rank += 1;
        exactly *= (n + 1 - rank) as f64 / rank as f64;
        fewer += exactly;
    }
    rank
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rank_matches_published_table() {
        // Hahn and Meeker, and any table of the sign test at 5 %, two-sided.
        let table =
            [(5, 0), (6, 1), (8, 1), (9, 2), (11, 2), (12, 3), (15, 4), (17, 5), (20, 6), (30, 10), (40, 14)];
        for (n, expected) in table {
            assert_eq!(rank(n), expected, "{n}");
        }
    }

    #[test]
    fn equal_ratios_give_that_ratio_alone() {
        let interval = Interval::of(&[1.25; 11]);
        assert_eq!(interval, Interval { ratio: 1.25, low: 1.25, high: 1.25 });
    }

    #[test]
    fn interval_is_between_second_lowest_and_second_highest_of_eleven() {
        let ratios = [0.9, 1.1, 1.05, 0.97, 1.3, 1.0, 0.99, 1.02, 1.01, 0.95, 1.07];
        assert_eq!(Interval::of(&ratios), Interval { ratio: 1.01, low: 0.95, high: 1.1 });
    }

    #[test]
    fn interval_of_inverse_ratios_is_the_inverse() {
        let ratios = [0.9, 1.1, 1.05, 0.97, 1.3, 1.0, 0.99, 1.02, 1.01, 0.95, 1.07, 0.8];
        let interval = Interval::of(&ratios);
        let inverse = Interval::of(&ratios.map(|ratio| 1.0 / ratio));
        assert!((interval.low * inverse.high - 1.0).abs() < 1e-12);
        assert!((interval.ratio * inverse.ratio - 1.0).abs() < 1e-12);
    }

    #[test]
    fn one_disturbed_pair_of_eleven_moves_the_interval_little() {
        let mut ratios = [1.0, 1.01, 0.99, 1.005, 0.995, 1.002, 0.998, 1.008, 0.992, 1.004, 0.996];
        ratios[3] = 40.0;
        let disturbed = Interval::of(&ratios);
        assert_eq!(disturbed, Interval { ratio: 1.0, low: 0.992, high: 1.01 });
    }

    #[test]
    fn interval_of_too_few_pairs_is_none() {
        let interval = Interval::of(&[0.5; 5]);
        assert_eq!((interval.low, interval.high), (0.0, f64::INFINITY));
    }

    #[test]
    fn interval_covers_the_true_ratio_as_often_as_promised() {
        // Ratios around 1 with a long tail to one side, by a generator with a fixed seed.
        let mut state = 7u64;
        let mut uniform = || {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (state >> 11) as f64 / (1u64 << 53) as f64
        };
        let runs = 4_000;
        let covers = |_: &u32| {
            let around_one = |above: f64| {
                if above > 0.5 { 1.0 + (above - 0.5).powi(2) * 40.0 } else { 0.98 + above * 0.04 }
            };
            let ratios: Vec<f64> = (0..17).map(|_| around_one(uniform())).collect();
            let interval = Interval::of(&ratios);
            interval.low <= 1.0 && 1.0 <= interval.high
        };
        let covered = (0..runs).filter(covers).count() as f64 / f64::from(runs);
        // 95.1 % for 17 pairs.
        assert!((0.94..0.962).contains(&covered), "{covered}");
    }
}
