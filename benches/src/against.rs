//! This tree beside another revision of it: `--against REV`.
//!
//! Two runs of a benchmark at different times differ by what else the machine did, often by more than what a change costs.
//! So both are built, and run alternately, a process for each sample: `A B B A A B ...`. What is compared is the ratio
//! within each pair; see [`interval`](crate::interval) for what follows from all of them. Rows that count instructions
//! need one pair.
//!
//! Rows of the program `xpv` are measured by this tree's benches on both sides, with the `xpv` of each: so they can be compared
//! with a revision that did not have them.

pub mod checkout;
mod comparison;
mod counted;
mod program;
mod progress;

pub use comparison::{Comparison, HEAD};

use crate::cargo::{self, BENCHES, XPV};
use crate::row::alternate;
use crate::rows::{Entry, Method};
use crate::sample::Sample;
use checkout::Checkout;
use counted::CountedPair;
use program::{Mode, Program};
use progress::Progress;
use std::cell::OnceCell;
use std::path::PathBuf;

/// Fewest pairs of a row.
pub const FEWEST_PAIRS: usize = 11;
/// Pairs of a row, unless told otherwise: of 17 the interval leaves out the four most extreme ratios on each side.
pub const PAIRS: usize = 17;

/// Another revision, and what is known of it.
pub struct Against {
    checkout: Checkout,
    pairs: usize,
    benches: OnceCell<Result<Programs, String>>,
    xpv: OnceCell<Result<Programs, String>>,
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
        Ok(Self { checkout, pairs, benches: OnceCell::new(), xpv: OnceCell::new(), counted })
    }

    /// Builds what of the other revision these rows need.
    ///
    /// # Errors
    /// It does not build.
    pub fn build(&self, rows: &[&Entry]) -> Result<(), String> {
        rows.iter().try_for_each(|entry| match entry.method {
            Method::Timed { .. } => self.benches().map(drop),
            Method::Program(_) => self.xpv().map(drop),
            Method::Counted(_) => Ok(()),
        })
    }

    /// The benches of both.
    fn benches(&self) -> Result<&Programs, String> {
        let programs = || {
            let this = this_program()?;
            let that = Program::new(self.checkout.label(), self.checkout.build(BENCHES)?);
            let mode = that.mode()?;
            Ok(Programs { this: Program::new("this tree", this), that, mode })
        };
        self.benches.get_or_init(programs).as_ref().map_err(Clone::clone)
    }

    /// This tree's benches twice, with the `xpv` of each.
    fn xpv(&self) -> Result<&Programs, String> {
        let programs = || {
            let this = this_program()?;
            let that = self.checkout.build(XPV)?;
            let of = |label, xpv| Program::new(label, this.clone()).of_xpv(xpv);
            let (this, that) = (of("this tree", cargo::build_here(XPV)?), of(self.checkout.label(), that));
            Ok(Programs { this, that, mode: Mode::Once })
        };
        self.xpv.get_or_init(programs).as_ref().map_err(Clone::clone)
    }

    /// Measures a row of both.
    ///
    /// # Errors
    /// Why a side could not be measured, and which.
    pub fn compare(&self, entry: &Entry) -> Result<Comparison, String> {
        match entry.method {
            Method::Timed { .. } => self.compare_timed(entry, self.benches()?),
            Method::Program(_) => self.compare_timed(entry, self.xpv()?),
            Method::Counted(counted) => {
                let pair = self.counted.pair(counted, self.checkout.label())?;
                Comparison::exact(entry, self.checkout.commit(), counted.case, pair)
            }
        }
    }

    fn compare_timed(&self, entry: &Entry, programs: &Programs) -> Result<Comparison, String> {
        let Programs { this, that, mode } = programs;
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

/// This program's path.
///
/// # Errors
/// It is a debug build, whose figures nobody wants.
fn this_program() -> Result<PathBuf, String> {
    if cfg!(debug_assertions) {
        return Err("this is a debug build: cargo run --release -p benches -- ... --against REV".into());
    }
    std::env::current_exe().map_err(|e| format!("this program's path: {e}"))
}
