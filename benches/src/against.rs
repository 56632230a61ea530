//! This tree beside another revision of it: `--against REV`.
//!
//! Two runs of a benchmark at different times differ by what else the machine did, often by more than what a change costs.
//! So both are built, and run alternately, a process for each sample: `A B B A A B ...`. What is compared is the ratio
//! within each pair; see [`interval`](crate::interval) for what follows from all of them. Rows that count instructions
//! need one pair.

pub mod checkout;
mod comparison;
mod counted;
mod program;
mod progress;

pub use comparison::{Comparison, HEAD};

use crate::row::alternate;
use crate::rows::{Entry, Method};
use crate::sample::Sample;
use checkout::Checkout;
use counted::CountedPair;
use program::{Mode, Program};
use progress::Progress;
use std::cell::OnceCell;

/// Fewest pairs of a row.
pub const FEWEST_PAIRS: usize = 11;
/// Pairs of a row, unless told otherwise: of 17 the interval leaves out the four most extreme ratios on each side.
pub const PAIRS: usize = 17;

/// Another revision, and what is known of it.
pub struct Against {
    checkout: Checkout,
    pairs: usize,
    programs: OnceCell<Result<Programs, String>>,
    counted: CountedPair,
}

/// The two programs, and the way to measure that both have.
struct Programs {
    this: Program,
    that: Program,
    mode: Mode,
}

impl Against {
    /// Checks out that revision; [`Self::build`] builds it.
    ///
    /// # Errors
    /// There is no such revision, or its checkout was changed.
    pub fn new(revision: &str, pairs: usize) -> Result<Self, String> {
        let checkout = Checkout::of(revision)?;
        let counted = CountedPair::new(checkout.directory());
        Ok(Self { checkout, pairs, programs: OnceCell::new(), counted })
    }

    /// Builds the other revision's benches, which rows with a clock need.
    ///
    /// # Errors
    /// It does not build.
    pub fn build(&self) -> Result<(), String> {
        self.programs().map(drop)
    }

    fn programs(&self) -> Result<&Programs, String> {
        let programs = || {
            if cfg!(debug_assertions) {
                return Err(
                    "this is a debug build: cargo run --release -p benches -- ... --against REV".into()
                );
            }
            let that = Program::new(self.checkout.label(), self.checkout.build()?);
            let this = std::env::current_exe().map_err(|e| format!("this program's path: {e}"))?;
            let mode = that.mode()?;
            Ok(Programs { this: Program::new("this tree", this), that, mode })
        };
        self.programs.get_or_init(programs).as_ref().map_err(Clone::clone)
    }

    /// Measures a row of both.
    ///
    /// # Errors
    /// Why a side could not be measured, and which.
    pub fn compare(&self, entry: &Entry) -> Result<Comparison, String> {
        match entry.method {
            Method::Timed { .. } => self.compare_timed(entry),
            Method::Counted(counted) => {
                let pair = self.counted.pair(counted, self.checkout.label())?;
                Comparison::exact(entry, self.checkout.commit(), counted.case, pair)
            }
        }
    }

    fn compare_timed(&self, entry: &Entry) -> Result<Comparison, String> {
        let Programs { this, that, mode } = self.programs()?;
        let text = format!("{}: {} pairs, {mode}", entry.name, self.pairs);
        let progress = Progress::bar(&text, 2 * self.pairs);
        let sample = |program: &Program| {
            let sample = program.sample(entry.name, *mode)?;
            progress.step();
            Ok::<Sample, String>(sample)
        };
        let mut pairs = Vec::with_capacity(self.pairs);
        for i in 0..self.pairs {
            let (new, old) = alternate(i, || sample(this), || sample(that));
            pairs.push((new?, old?));
        }
        drop(progress);
        Comparison::of(entry, self.checkout.commit(), &pairs)
    }
}
