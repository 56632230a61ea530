//! Rows X1 and X2: what a stock guest's request costs on real Xen, in instructions of dom0 and Xen, beside Linux's own
//! backends.
//!
//! The scenarios `x1` and `x2` of `tests/xen` measure both sides in one machine, whose clock counts instructions. The
//! same work takes the same number of them, give or take a percent: one pair is enough.

use crate::missing::not_started;
use crate::row::{Goal, Row};
use crate::sample::Sample;
use serde::Deserialize;
use std::path::Path;
use std::process::Command;
use std::sync::OnceLock;

/// What rows X1 to X2l count.
pub const UNIT: &str = "instr.";

/// A line that a scenario prints.
#[derive(Clone, Debug, Deserialize)]
struct Figure {
    side: String,
    case: String,
    instructions: f64,
}

/// What a scenario measured.
#[derive(Clone, Debug)]
pub struct Figures(Vec<Figure>);

/// Where a row's figure comes from.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct Counted {
    /// The scenario of `tests/xen` that measures it.
    pub scenario: &'static str,
    /// The scenario's name for what it measured.
    pub case: &'static str,
}

/// Row X1: one read at a time.
pub const X1: Counted = Counted { scenario: "x1", case: "depth 1" };
/// Row X1 with 32 reads in flight.
pub const X1_QUEUED: Counted = Counted { scenario: "x1", case: "depth 32" };
/// Row X2: frames of 64 bytes as fast as the guest sends them.
pub const X2: Counted = Counted { scenario: "x2", case: "64 bytes, gap 0 ns" };
/// Row X2, with each frame on its own.
pub const X2_SINGLE: Counted = Counted { scenario: "x2", case: "64 bytes, gap 200000 ns" };
/// Row X2, with frames of 1,514 bytes.
pub const X2_LARGE: Counted = Counted { scenario: "x2", case: "1514 bytes, gap 0 ns" };

impl Counted {
    /// This row, under that name.
    ///
    /// # Errors
    /// The real-Xen test machine cannot be built, or the scenario failed.
    pub fn row(self, name: &'static str) -> Result<Row, String> {
        let beside = match self.scenario {
            "x1" => "real Xen, stock guest, 4 KiB reads of /dev/ram0; Linux xen-blkback",
            _ => "real Xen, stock guest to stock guest, a frame; Linux xen-netback and bridge",
        };
        let figures = self.figures()?;
        let pairs = [(figures.ours(self.case)?, figures.of("linux", self.case)?)];
        let what = format!("{}: {beside}", self.case);
        Ok(Row::new(name, what, UNIT, Goal::AtMost(1.2), &pairs))
    }

    /// Our side of this row.
    ///
    /// # Errors
    /// As [`Self::row`].
    pub fn once(self) -> Result<Sample, String> {
        Ok(Sample::single(UNIT, self.figures()?.ours(self.case)?))
    }

    /// What the scenario measured: rows of one scenario share one run of it.
    fn figures(self) -> Result<Figures, String> {
        static OF_X1: OnceLock<Result<Figures, String>> = OnceLock::new();
        static OF_X2: OnceLock<Result<Figures, String>> = OnceLock::new();
        let figures = if self.scenario == "x1" { &OF_X1 } else { &OF_X2 };
        figures.get_or_init(|| scenario(self.scenario, None)).clone()
    }
}

impl Figures {
    /// Our figure of a case.
    ///
    /// # Errors
    /// The scenario printed none.
    pub fn ours(&self, case: &str) -> Result<f64, String> {
        self.of("ours", case)
    }

    fn of(&self, side: &str, case: &str) -> Result<f64, String> {
        let found = self.0.iter().find(|figure| figure.side == side && figure.case == case);
        let found = found.ok_or_else(|| format!("the scenario printed no figure of {side} for {case}"))?;
        Ok(found.instructions)
    }
}

/// Runs a scenario, which has a timeout of its own, with `xpv` built from this tree or from another checkout, and gives the
/// figures that it printed.
///
/// # Errors
/// The test machine cannot be built, `xpv` does not build, or the scenario failed.
pub fn scenario(name: &str, checkout: Option<&Path>) -> Result<Figures, String> {
    let run = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/xen/run");
    let mut command = Command::new("python3");
    command.arg(&run).args(["--jobs", "1", name]);
    if let Some(checkout) = checkout {
        command.arg(format!("--source=xpv={}", checkout.display()));
    }
    let output = command.output().map_err(|e| not_started("python3", "python3", &e))?;
    let said = String::from_utf8_lossy(&output.stdout);
    if !output.status.success() {
        let errors = String::from_utf8_lossy(&output.stderr);
        return Err(failure(&said, &errors).unwrap_or_else(|| format!("tests/xen/run: {}", output.status)));
    }
    Ok(figures(&said))
}

/// Why `tests/xen/run` failed, from what it printed: its line `FAIL NAME reason (log: PATH)`, or what it said was missing,
/// with the first error of a program that did not build.
fn failure(said: &str, errors: &str) -> Option<String> {
    if let Some(failed) = said.lines().rev().find_map(|line| line.strip_prefix("FAIL ")) {
        return Some(format!("scenario {failed}"));
    }
    let last = errors.lines().rev().find(|line| !line.trim().is_empty())?;
    let last = last.strip_prefix("xen: ").unwrap_or(last);
    let compiler = errors.lines().find(|line| line.starts_with("error"));
    Some(compiler.map_or_else(|| last.to_owned(), |error| format!("{last}: {error}")))
}

fn figures(said: &str) -> Figures {
    Figures(said.lines().filter_map(|line| serde_json::from_str(line).ok()).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_are_found_among_other_lines() {
        let said = "xen: logs in /x\nok x1 80 s\n\
            {\"row\":\"X1\",\"side\":\"ours\",\"case\":\"depth 1\",\"instructions\":240}\n\
            {\"row\":\"X1\",\"side\":\"linux\",\"case\":\"depth 1\",\"instructions\":200}\n";
        let figures = figures(said);
        assert_eq!((figures.ours("depth 1"), figures.of("linux", "depth 1")), (Ok(240.0), Ok(200.0)));
        assert!(figures.ours("depth 32").is_err());
    }

    #[test]
    fn failed_scenario_gives_its_reason_and_log() {
        let said = "xen: accelerator tcg, logs in /c\n\
            FAIL x1 QEMU ended with status 1: Bad icount read (log: /c/x1/console.log)\n\
            xen: 0 of 1 passed in 5 s\n";
        let why = failure(said, "").unwrap();
        assert_eq!(why, "scenario x1 QEMU ended with status 1: Bad icount read (log: /c/x1/console.log)");
    }

    #[test]
    fn missing_tool_gives_what_to_install() {
        let said = failure("", "xen: `strip` is not installed: apt-get install binutils\n").unwrap();
        assert_eq!(said, "`strip` is not installed: apt-get install binutils");
    }

    #[test]
    fn failed_build_gives_the_first_compiler_error() {
        let errors = "   Compiling xpv\nerror[E0425]: no `x`\nerror: could not compile\nxen: cannot build xpv in /w: cargo build\n";
        assert_eq!(
            failure("xen: building the program xpv\n", errors).unwrap(),
            "cannot build xpv in /w: cargo build: error[E0425]: no `x`"
        );
    }
}
