//! A row of the performance table: two figures, measured alternately in one run, and the goal for their ratio; or a figure
//! that has a goal of its own.

use serde::{Deserialize, Serialize};
use std::fmt;
use std::time::{Duration, Instant};

/// Which of two figures is the better one.
#[derive(Clone, Copy, PartialEq, Debug)]
pub enum Better {
    /// The higher one: a rate.
    Higher,
    /// The lower one: a time or a cost.
    Lower,
}

impl Better {
    /// How many times better `new` is than `old`: above 1 if it is, below 1 if it is worse.
    pub fn ratio(self, new: f64, old: f64) -> f64 {
        match self {
            Self::Higher => new / old,
            Self::Lower => old / new,
        }
    }
}

/// What the ratio, or our figure, must reach.
#[derive(Clone, Copy, PartialEq, Debug)]
pub enum Goal {
    /// `ours / peer`, for times and costs: no more than this.
    AtMost(f64),
    /// `ours / peer`, for rates: no less than this.
    AtLeast(f64),
    /// `peer / ours`, for times: at least this many times faster.
    Faster(f64),
    /// `ours - peer`, for times: no more than this, in the row's unit.
    AtMostAbove(f64),
    /// Nothing: the ratio is for the reader.
    Nothing,
}

impl Goal {
    /// The ratio of a pair of figures, in this goal's sense.
    pub fn ratio(self, ours: f64, peer: f64) -> f64 {
        match self {
            Self::Faster(_) => peer / ours,
            _ => ours / peer,
        }
    }

    /// Whether that ratio of pairs, and that difference within them, is good enough; `None` without a goal.
    fn met(self, ratio: f64, above: f64) -> Option<bool> {
        match self {
            Self::AtMost(most) => Some(ratio <= most),
            Self::AtLeast(least) | Self::Faster(least) => Some(ratio >= least),
            Self::AtMostAbove(most) => Some(above <= most),
            Self::Nothing => None,
        }
    }
}

impl fmt::Display for Goal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::AtMost(most) => write!(f, "<= {most}"),
            Self::AtLeast(least) => write!(f, ">= {least}"),
            Self::Faster(least) => write!(f, ">= {least} x faster"),
            Self::AtMostAbove(most) => write!(f, "<= peer + {most}"),
            Self::Nothing => f.write_str("-"),
        }
    }
}

/// A measured row.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct Row {
    /// The name in the table, such as "R1".
    pub row: String,
    /// What was measured, and beside what.
    pub what: String,
    /// Median of our runs.
    pub ours: f64,
    /// Median of the peer's runs; none where the goal is for our figure alone.
    pub peer: Option<f64>,
    /// Of both figures.
    pub unit: String,
    /// Median of the ratios of neighbouring runs: what else the machine did weighs on both alike.
    pub ratio: Option<f64>,
    /// In words.
    pub goal: String,
    /// Whether the ratio, or our figure, meets it; none without a goal.
    pub met: Option<bool>,
}

impl Row {
    /// From pairs of (ours, peer's), measured by [`interleave`].
    pub fn new(row: &str, what: impl Into<String>, unit: &str, goal: Goal, pairs: &[(f64, f64)]) -> Self {
        let ratio = median(pairs.iter().map(|&(ours, peer)| goal.ratio(ours, peer)));
        let above = median(pairs.iter().map(|&(ours, peer)| ours - peer));
        Self {
            row: row.to_owned(),
            what: what.into(),
            ours: median(pairs.iter().map(|p| p.0)),
            peer: Some(median(pairs.iter().map(|p| p.1))),
            unit: unit.to_owned(),
            ratio: Some(ratio),
            goal: goal.to_string(),
            met: goal.met(ratio, above),
        }
    }

    /// Of a figure that must be no more than `most`, whatever others have.
    pub fn bounded(row: &str, what: impl Into<String>, unit: &str, most: f64, ours: f64) -> Self {
        Self {
            row: row.to_owned(),
            what: what.into(),
            ours,
            peer: None,
            unit: unit.to_owned(),
            ratio: None,
            goal: format!("<= {most} {unit}"),
            met: Some(ours <= most),
        }
    }
}

impl fmt::Display for Row {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { row, what, ours, peer, unit, ratio, goal, met } = self;
        let met = match met {
            None => "-",
            Some(true) => "met",
            Some(false) => "NOT MET",
        };
        let peer = peer.map_or("-".to_owned(), |peer| format!("{peer:.2}"));
        let ratio = ratio.map_or("-".to_owned(), |ratio| format!("{ratio:.3}"));
        write!(f, "{row:4} {ours:>10.2} {peer:>10} {unit:8} {ratio:>7}  {goal:14} {met:8} {what}")
    }
}

/// The table's head, to stand above rows.
pub const HEAD: &str = "row        ours       peer unit       ratio  goal           met      what";

/// A row stops after this long, if it has [`FEWEST`] pairs: a crowded machine makes runs long.
const LONGEST: Duration = Duration::from_secs(8);
const FEWEST: usize = 5;

/// One pair: `a` first if `i` is even, else `b` first. Over many pairs, `A B B A A B ...`, neither always comes first.
pub fn alternate<A, B>(i: usize, a: impl FnOnce() -> A, b: impl FnOnce() -> B) -> (A, B) {
    if i.is_multiple_of(2) {
        let first = a();
        (first, b())
    } else {
        let first = b();
        (a(), first)
    }
}

/// Runs both alternately; at most `pairs` pairs of (a, b).
pub fn interleave(pairs: usize, mut a: impl FnMut() -> f64, mut b: impl FnMut() -> f64) -> Vec<(f64, f64)> {
    let start = Instant::now();
    let more = |i: &usize| *i < FEWEST || start.elapsed() < LONGEST;
    (0..pairs).take_while(more).map(|i| alternate(i, &mut a, &mut b)).collect()
}

/// The middle figure; of an even number, the lower one of the two.
pub fn median(figures: impl IntoIterator<Item = f64>) -> f64 {
    let mut figures: Vec<f64> = figures.into_iter().collect();
    figures.sort_by(f64::total_cmp);
    figures[(figures.len() - 1) / 2]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn better_ratio_above_one_is_an_improvement() {
        assert_eq!(Better::Higher.ratio(12.0, 10.0), 1.2);
        assert_eq!(Better::Lower.ratio(10.0, 12.0), 1.2);
    }

    #[test]
    fn goal_of_each_kind_compares_in_its_direction() {
        let met = |goal, ours, peer| Row::new("R1", "", "ns", goal, &[(ours, peer)]).met;
        assert_eq!(met(Goal::AtMost(1.0), 9.0, 10.0), Some(true));
        assert_eq!(met(Goal::AtLeast(1.0), 9.0, 10.0), Some(false));
        assert_eq!(met(Goal::Faster(6.0), 9.0, 56.0), Some(true));
        assert_eq!(met(Goal::AtMostAbove(20.0), 78.0, 58.0), Some(true));
        assert_eq!(met(Goal::AtMostAbove(20.0), 78.5, 58.0), Some(false));
        assert_eq!(met(Goal::Nothing, 9.0, 10.0), None);
    }

    #[test]
    fn bounded_row_has_no_peer_and_survives_json() {
        let row = Row::bounded("U1", "disk", "ms", 20.0, 25.0);
        assert_eq!((row.peer, row.ratio, row.met), (None, None, Some(false)));
        assert!(row.to_string().contains("<= 20 ms"), "{row}");
        let text = serde_json::to_string(&row).unwrap();
        assert_eq!(serde_json::from_str::<Row>(&text).unwrap(), row);
    }

    #[test]
    fn median_of_an_even_number_is_the_lower_middle() {
        assert_eq!(median([3.0, 1.0, 2.0]), 2.0);
        assert_eq!(median([4.0, 1.0]), 1.0);
    }

    #[test]
    fn interleave_alternates_which_side_comes_first() {
        let log = std::cell::RefCell::new(String::new());
        let run = |name: char| log.borrow_mut().push(name);
        let pairs = interleave(
            3,
            || {
                run('a');
                1.0
            },
            || {
                run('b');
                2.0
            },
        );
        assert_eq!(log.into_inner(), "abbaab");
        assert_eq!(pairs, [(1.0, 2.0); 3]);
    }
}
