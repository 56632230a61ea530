//! Rows that count instructions, for both trees: this tree's scenarios with either tree's `xpv`.
//!
//! The scenario and the program that reads the counters are the measuring instrument: both sides are measured with this
//! tree's, so that only what is measured differs.
//!
//! Not all of it is exact: when the emulated machine hears from the host, such as of 9p, shifts how requests fall into batches.
//! On a busy host two runs of the same program differed by 1 % at depth 1 and by 11 % at depth 32.

use super::progress::Progress;
use crate::xen::{Counted, Figures, scenario};
use std::cell::RefCell;
use std::collections::HashMap;
use std::path::{Path, PathBuf};

type Both = Result<(Figures, Figures), String>;

/// Figures of both, a scenario at a time: rows of one scenario share its two runs.
pub(super) struct CountedPair {
    checkout: PathBuf,
    known: RefCell<HashMap<&'static str, Both>>,
}

impl CountedPair {
    /// Nothing is known yet of the tree in `checkout`.
    pub(super) fn new(checkout: &Path) -> Self {
        Self { checkout: checkout.to_owned(), known: RefCell::default() }
    }

    /// Our figures of this tree and of the other one, which errors call `label`.
    pub(super) fn pair(&self, counted: Counted, label: &str) -> Result<(f64, f64), String> {
        let mut known = self.known.borrow_mut();
        let both = known.entry(counted.scenario).or_insert_with(|| self.measure(counted.scenario, label));
        let (this, that) = both.as_ref().map_err(Clone::clone)?;
        Ok((this.ours(counted.case)?, that.ours(counted.case)?))
    }

    fn measure(&self, name: &str, label: &str) -> Both {
        let _progress =
            Progress::spinner(&format!("scenario {name}, with xpv of this tree and with that of {label}"));
        let this = scenario(name, None).map_err(|why| format!("this tree: {why}"))?;
        let that = scenario(name, Some(&self.checkout)).map_err(|why| format!("{label}: {why}"))?;
        Ok((this, that))
    }
}
