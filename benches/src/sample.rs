//! One sample of our side of a row, measured by itself: what `--once` prints and `--against` compares.

use crate::row::median;
use serde::{Deserialize, Serialize};
use std::time::{Duration, Instant};

/// Our figures of one row.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct Sample {
    /// Of all figures.
    pub unit: String,
    /// One figure for each case that the row has, in the row's order.
    pub cases: Vec<Case>,
}

/// A figure and what it is of.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct Case {
    /// Such as "11 segments"; empty where a row has one case.
    pub case: String,
    /// The figure.
    pub value: f64,
}

impl Sample {
    /// Of a row with a single case.
    pub fn single(unit: &str, value: f64) -> Self {
        Self::new(unit, [(String::new(), value)])
    }

    /// Of a row with these cases.
    pub fn new(unit: &str, cases: impl IntoIterator<Item = (String, f64)>) -> Self {
        let cases = cases.into_iter().map(|(case, value)| Case { case, value }).collect();
        Self { unit: unit.to_owned(), cases }
    }
}

/// Caches, branch predictors and the processor's clock have settled after this long.
const WARM_UP: Duration = Duration::from_millis(200);
/// No more runs begin after this long.
const LONGEST: Duration = Duration::from_secs(4);

/// The median of at most `runs` runs, after others that warm up and are not counted: what a run within a row's
/// interleaved measurement finds warm too.
pub fn settled(runs: usize, mut ours: impl FnMut() -> f64) -> f64 {
    let start = Instant::now();
    while start.elapsed() < WARM_UP {
        ours();
    }
    let start = Instant::now();
    median((0..runs).take_while(|&i| i == 0 || start.elapsed() < LONGEST).map(|_| ours()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn settled_counts_no_run_of_the_warm_up() {
        let start = Instant::now();
        let figure = settled(3, || if start.elapsed() < WARM_UP { 1.0 } else { 2.0 });
        assert_eq!(figure, 2.0);
    }

    #[test]
    fn sample_survives_json() {
        let sample = Sample::new("ns", [("1 segment".to_owned(), 8.25), ("11 segments".to_owned(), 30.5)]);
        let text = serde_json::to_string(&sample).unwrap();
        assert_eq!(serde_json::from_str::<Sample>(&text).unwrap(), sample);
    }
}
