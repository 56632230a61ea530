//! Rows X1 and X2: what a stock guest's request costs on real Xen, in instructions of dom0 and Xen, beside Linux's
//! own backends.
//!
//! The scenarios `x1` and `x2` of `tests/xen` measure both sides in one machine, whose clock counts instructions. The
//! same work takes the same number of them, give or take a percent: one pair is enough.

use crate::row::{Goal, Row};
use serde::Deserialize;
use std::path::Path;
use std::process::Command;
use std::sync::OnceLock;

/// A line that a scenario prints.
#[derive(Clone, Debug, Deserialize)]
struct Figure {
    side: String,
    case: String,
    instructions: f64,
}

/// Row X1: one read at a time.
///
/// # Errors
/// The real-Xen test machine cannot be had, or the scenario failed.
pub fn x1() -> Result<Row, String> {
    x1_row("X1", "depth 1")
}

/// Row X1 with 32 reads in flight.
///
/// # Errors
/// As [`x1`].
pub fn x1_queued() -> Result<Row, String> {
    x1_row("X1q", "depth 32")
}

/// Row X2: frames of 64 bytes as fast as the guest sends them.
///
/// # Errors
/// As [`x1`].
pub fn x2() -> Result<Row, String> {
    x2_row("X2", "64 bytes, gap 0 ns")
}

/// Row X2, with each frame on its own.
///
/// # Errors
/// As [`x1`].
pub fn x2_single() -> Result<Row, String> {
    x2_row("X2s", "64 bytes, gap 200000 ns")
}

/// Row X2, with frames of 1,514 bytes.
///
/// # Errors
/// As [`x1`].
pub fn x2_large() -> Result<Row, String> {
    x2_row("X2l", "1514 bytes, gap 0 ns")
}

fn x1_row(name: &'static str, case: &str) -> Result<Row, String> {
    static FIGURES: OnceLock<Result<Vec<Figure>, String>> = OnceLock::new();
    let figures = FIGURES.get_or_init(|| scenario("x1")).clone()?;
    row(name, case, &figures, "real Xen, stock guest, 4 KiB reads of /dev/ram0; Linux xen-blkback")
}

fn x2_row(name: &'static str, case: &str) -> Result<Row, String> {
    static FIGURES: OnceLock<Result<Vec<Figure>, String>> = OnceLock::new();
    let figures = FIGURES.get_or_init(|| scenario("x2")).clone()?;
    row(name, case, &figures, "real Xen, stock guest to stock guest, a frame; Linux xen-netback and bridge")
}

fn row(name: &'static str, case: &str, figures: &[Figure], what: &str) -> Result<Row, String> {
    let of = |side: &str| {
        let found = figures.iter().find(|figure| figure.side == side && figure.case == case);
        found.map(|figure| figure.instructions).ok_or_else(|| format!("no figure of {side}, {case}"))
    };
    let pairs = [(of("ours")?, of("linux")?)];
    Ok(Row::new(name, format!("{case}: {what}"), "instr.", Goal::AtMost(1.2), &pairs))
}

/// Runs a scenario, which has a time-out of its own, and gives the figures that it printed.
fn scenario(name: &str) -> Result<Vec<Figure>, String> {
    let run = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/xen/run");
    let output = Command::new(&run).args(["--jobs", "1", name]).output();
    let output = output.map_err(|e| format!("{}: {e}", run.display()))?;
    let said = String::from_utf8_lossy(&output.stdout);
    if !output.status.success() {
        let why = said.lines().rev().find(|line| line.starts_with("FAIL") || line.starts_with("xen:"));
        let else_why = String::from_utf8_lossy(&output.stderr).lines().last().map(str::to_owned);
        return Err(why.map(str::to_owned).or(else_why).unwrap_or_else(|| format!("{}", output.status)));
    }
    Ok(figures(&said))
}

fn figures(said: &str) -> Vec<Figure> {
    said.lines().filter_map(|line| serde_json::from_str(line).ok()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_are_found_among_other_lines() {
        let said = "xen: logs in /x\nok x1 80 s\n\
            {\"row\":\"X1\",\"side\":\"ours\",\"case\":\"depth 1\",\"instructions\":240}\n\
            {\"row\":\"X1\",\"side\":\"linux\",\"case\":\"depth 1\",\"instructions\":200}\n";
        let row = row("X1", "depth 1", &figures(said), "").unwrap();
        assert_eq!((row.ours, row.peer, row.met), (240.0, 200.0, true));
        assert!(super::row("X1", "depth 32", &figures(said), "").is_err());
    }
}
