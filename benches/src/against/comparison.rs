//! A row of two trees, and the verdict.

use crate::interval::Interval;
use crate::row::{Better, median};
use crate::rows::Entry;
use crate::sample::Sample;
use crate::xen::UNIT;
use serde::Serialize;
use std::fmt;

/// A row is worse if its whole interval lies below this ratio: changes of less are not worth a false alarm.
const WORSE_BELOW: f64 = 0.97;

/// A row measured in pairs of this tree and another.
#[derive(Clone, PartialEq, Debug, Serialize)]
pub struct Comparison {
    /// Name in the table.
    pub row: &'static str,
    /// What was measured.
    pub what: String,
    /// Median of this tree's samples.
    pub this: f64,
    /// Median of the other revision's samples.
    pub that: f64,
    /// The other revision's commit.
    pub revision: String,
    /// Of both figures.
    pub unit: String,
    /// How many pairs were measured.
    pub pairs: usize,
    /// How many times better this tree is: above 1 better, below 1 worse, whether figures are rates or times.
    pub ratio: f64,
    /// Lower end of the ratio's interval; none where one pair is exact.
    pub low: Option<f64>,
    /// Upper end of the ratio's interval; none where one pair is exact.
    pub high: Option<f64>,
    /// Whether the whole interval, or the exact ratio, lies below 0.97.
    pub worse: bool,
}

impl Comparison {
    /// From pairs of (this, that) in the order in which they were measured.
    ///
    /// Of a row with several cases it is the one whose interval ends lowest: the row is worse if any of its cases is.
    ///
    /// # Errors
    /// The samples of the two do not have the same cases or unit, or one is not a positive number.
    pub(super) fn of(entry: &Entry, revision: &str, pairs: &[(Sample, Sample)]) -> Result<Self, String> {
        let shape = |sample: &Sample| {
            let cases: Vec<String> = sample.cases.iter().map(|case| case.case.clone()).collect();
            (sample.unit.clone(), cases)
        };
        let (unit, names) = pairs.first().map(|(this, _)| shape(this)).ok_or("no pairs")?;
        if let Some(other) =
            pairs.iter().flat_map(|(a, b)| [a, b]).map(shape).find(|s| *s != (unit.clone(), names.clone()))
        {
            return Err(format!(
                "the two measure different things: {unit} {names:?}, and {} {:?}",
                other.0, other.1
            ));
        }
        let case = |i: usize| {
            let figures = pairs.iter().map(|(this, that)| (this.cases[i].value, that.cases[i].value));
            Self::case(entry, revision, &names[i], &unit, &figures.collect::<Vec<_>>())
        };
        let mut cases = (0..names.len()).map(case).collect::<Result<Vec<_>, String>>()?;
        cases.sort_by(|a, b| a.high.unwrap_or(a.ratio).total_cmp(&b.high.unwrap_or(b.ratio)));
        let others: Vec<String> = cases.iter().skip(1).map(Self::in_short).collect();
        let mut lowest = cases.into_iter().next().ok_or("a sample without figures")?;
        if !others.is_empty() {
            lowest.what = format!("{} (the other: {})", lowest.what, others.join(", "));
        }
        Ok(lowest)
    }

    /// The ratio and its interval.
    fn in_short(&self) -> String {
        format!("{:.3}, {}", self.ratio, self.interval())
    }

    fn interval(&self) -> String {
        match (self.low, self.high) {
            (Some(low), Some(high)) => format!("{low:.3} to {high:.3}"),
            _ => "exact".to_owned(),
        }
    }

    fn case(
        entry: &Entry,
        revision: &str,
        case: &str,
        unit: &str,
        pairs: &[(f64, f64)],
    ) -> Result<Self, String> {
        let ratios = ratios(entry.better, pairs)?;
        let Interval { ratio, low, high } = Interval::of(&ratios);
        Ok(Self {
            row: entry.name,
            what: described(entry, case),
            this: median(pairs.iter().map(|pair| pair.0)),
            that: median(pairs.iter().map(|pair| pair.1)),
            revision: revision.to_owned(),
            unit: unit.to_owned(),
            pairs: pairs.len(),
            ratio,
            low: Some(low),
            high: Some(high),
            worse: high < WORSE_BELOW,
        })
    }

    /// From one pair of (this, that) that another measurement would repeat.
    ///
    /// # Errors
    /// A figure is not a positive number.
    pub(super) fn exact(entry: &Entry, revision: &str, case: &str, pair: (f64, f64)) -> Result<Self, String> {
        let ratio = ratios(entry.better, &[pair])?[0];
        Ok(Self {
            row: entry.name,
            what: described(entry, case),
            this: pair.0,
            that: pair.1,
            revision: revision.to_owned(),
            unit: UNIT.to_owned(),
            pairs: 1,
            ratio,
            low: None,
            high: None,
            worse: ratio < WORSE_BELOW,
        })
    }
}

fn described(entry: &Entry, case: &str) -> String {
    if case.is_empty() { entry.what.to_owned() } else { format!("{}, {case}", entry.what) }
}

fn ratios(better: Better, pairs: &[(f64, f64)]) -> Result<Vec<f64>, String> {
    let ratio = |&(this, that): &(f64, f64)| {
        let ratio = better.ratio(this, that);
        let valid = this > 0.0 && that > 0.0 && ratio.is_finite();
        valid.then_some(ratio).ok_or_else(|| format!("figures that cannot be compared: {this} and {that}"))
    };
    pairs.iter().map(ratio).collect()
}

/// The table's head, to stand above comparisons.
pub const HEAD: &str = "row        this       that unit       ratio  95 % interval    verdict    what";

impl fmt::Display for Comparison {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { row, what, this, that, unit, ratio, .. } = self;
        let interval = self.interval();
        let verdict = if self.worse { "worse" } else { "not worse" };
        write!(
            f,
            "{row:4} {this:>10.2} {that:>10.2} {unit:8} {ratio:>7.3}  {interval:16} {verdict:10} {what}"
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rows::find;

    fn pairs(of: impl Fn(usize) -> (f64, f64)) -> Vec<(Sample, Sample)> {
        (0..11).map(of).map(|(a, b)| (Sample::single("x", a), Sample::single("x", b))).collect()
    }

    /// Noise of a few thousandths, alike on both sides of 1.
    fn noise(i: usize) -> f64 {
        1.0 + (i as f64 - 5.0) / 1_000.0
    }

    #[test]
    fn slower_time_and_lower_rate_are_worse() {
        let slower = pairs(|i| (110.0 * noise(i), 100.0));
        assert!(Comparison::of(find("R1").unwrap(), "abc", &slower).unwrap().worse);
        assert!(!Comparison::of(find("B1").unwrap(), "abc", &slower).unwrap().worse);
        let faster = pairs(|i| (90.0 * noise(i), 100.0));
        assert!(!Comparison::of(find("R1").unwrap(), "abc", &faster).unwrap().worse);
        assert!(Comparison::of(find("B1").unwrap(), "abc", &faster).unwrap().worse);
    }

    #[test]
    fn interval_that_reaches_the_limit_is_not_worse() {
        let wide = pairs(|i| (if i % 4 == 0 { 100.0 } else { 90.0 }, 100.0));
        let comparison = Comparison::of(find("B1").unwrap(), "abc", &wide).unwrap();
        assert!(comparison.ratio < WORSE_BELOW && !comparison.worse, "{comparison}");
    }

    #[test]
    fn worst_case_of_a_row_decides() {
        let both = |one, eleven| {
            Sample::new("ns", [("1 segment".to_owned(), one), ("11 segments".to_owned(), eleven)])
        };
        let pairs: Vec<_> =
            (0..11).map(|i| (both(10.0 * noise(i), 36.0 * noise(i)), both(10.0, 30.0))).collect();
        let comparison = Comparison::of(find("R1").unwrap(), "abc", &pairs).unwrap();
        assert!(comparison.worse && comparison.what.contains("11 segments (the other: 1.0"), "{comparison}");
        assert_eq!(comparison.that, 30.0);
    }

    #[test]
    fn exact_pair_has_no_interval() {
        let comparison = Comparison::exact(find("X1").unwrap(), "abc", "depth 1", (100.0, 96.0)).unwrap();
        assert!(comparison.worse && comparison.low.is_none(), "{comparison}");
        assert!(!Comparison::exact(find("X1").unwrap(), "abc", "depth 1", (100.0, 98.0)).unwrap().worse);
    }

    #[test]
    fn different_cases_or_empty_figures_are_refused() {
        let entry = find("R1").unwrap();
        let odd = (Sample::single("ns", 1.0), Sample::new("ns", [("1 segment".to_owned(), 1.0)]));
        assert!(Comparison::of(entry, "abc", &[odd]).unwrap_err().contains("different things"));
        let nothing = (Sample::single("ns", 0.0), Sample::single("ns", 1.0));
        assert!(Comparison::of(entry, "abc", &[nothing]).unwrap_err().contains("cannot be compared"));
    }
}
