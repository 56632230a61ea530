//! A built benches program, run for one sample.
//!
//! A program that has `--once` measures one sample of its own side, warm-up included. One of a revision before that is
//! asked for the whole row, `ROW --json`, and our side's median is taken from it: the same thing, with more runs behind it
//! and with the need for the row's peer.

use crate::sample::Sample;
use serde::Deserialize;
use std::fmt;
use std::path::PathBuf;
use std::process::{Command, Stdio};

/// How a sample is got; the same for both programs.
#[derive(Clone, Copy, PartialEq, Debug)]
pub(super) enum Mode {
    /// `--once ROW`.
    Once,
    /// `ROW --json`.
    WholeRow,
}

impl fmt::Display for Mode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Once => "a sample of our side each",
            Self::WholeRow => "the whole row each, since that revision has no --once",
        })
    }
}

/// A benches program.
pub(super) struct Program {
    label: String,
    path: PathBuf,
    /// The `xpv` that it measures, where it is not its own tree's.
    xpv: Option<PathBuf>,
}

impl Program {
    /// The program at `path`, which errors call `label`.
    pub(super) fn new(label: impl Into<String>, path: PathBuf) -> Self {
        Self { label: label.into(), path, xpv: None }
    }

    /// The same, which measures that program `xpv`.
    pub(super) fn of_xpv(self, xpv: PathBuf) -> Self {
        Self { xpv: Some(xpv), ..self }
    }

    /// The best way to measure that the program has.
    pub(super) fn mode(&self) -> Result<Mode, String> {
        let help = self.run(&["--help"])?;
        Ok(if help.contains("--once") { Mode::Once } else { Mode::WholeRow })
    }

    /// One sample of a row.
    pub(super) fn sample(&self, row: &str, mode: Mode) -> Result<Sample, String> {
        let (said, parsed) = match mode {
            Mode::Once => {
                let said = self.run(&["--once", row])?;
                let parsed = serde_json::from_str(&said);
                (said, parsed)
            }
            Mode::WholeRow => {
                let said = self.run(&[row, "--json"])?;
                let parsed = serde_json::from_str::<WholeRow>(&said).map(WholeRow::ours);
                (said, parsed)
            }
        };
        parsed.map_err(|e| format!("{}: not a figure of {row}: {e}: {}", self.label, said.trim()))
    }

    /// What the program prints.
    fn run(&self, arguments: &[&str]) -> Result<String, String> {
        let mut command = Command::new(&self.path);
        if let Some(xpv) = &self.xpv {
            command.arg("--xpv").arg(xpv);
        }
        let output = command.args(arguments).stdin(Stdio::null()).output();
        let output = output.map_err(|e| format!("{}: {}: {e}", self.label, self.path.display()))?;
        if !output.status.success() {
            let why = reason(&String::from_utf8_lossy(&output.stderr));
            return Err(format!("{}: {}", self.label, why.unwrap_or_else(|| output.status.to_string())));
        }
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }
}

/// Why a program failed, from its stderr: what follows "not measured", or else its last lines.
fn reason(errors: &str) -> Option<String> {
    if let Some((_, why)) = errors.rsplit_once("not measured: ") {
        return Some(why.trim().to_owned());
    }
    let lines: Vec<&str> = errors.lines().map(str::trim).filter(|line| !line.is_empty()).collect();
    let last = &lines[lines.len().saturating_sub(3)..];
    (!last.is_empty()).then(|| last.join(" | "))
}

/// What is needed of a row's JSON object.
#[derive(Deserialize)]
struct WholeRow {
    what: String,
    ours: f64,
    unit: String,
}

impl WholeRow {
    /// Our figures: of rows that are measured with two kinds of requests the object has one in `ours`, and the other in the
    /// text, as in "11 segments, beside ... (stricter; the other: 8.20 to 9.10)".
    fn ours(self) -> Sample {
        let other =
            self.what.split_once("the other: ").and_then(|(_, rest)| rest.split(' ').next()?.parse().ok());
        let Some(other) = other else { return Sample::single(&self.unit, self.ours) };
        let (one, eleven) =
            if self.what.contains("11 segments") { (other, self.ours) } else { (self.ours, other) };
        Sample::new(&self.unit, [("1 segment".to_owned(), one), ("11 segments".to_owned(), eleven)])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn whole(what: &str) -> Sample {
        WholeRow { what: what.to_owned(), ours: 8.25, unit: "ns".to_owned() }.ours()
    }

    #[test]
    fn whole_row_gives_both_cases_in_order() {
        let stricter = |segments| {
            format!("ring, {segments}, beside Xen's C macros (stricter; the other: 30.50 to 31.00)")
        };
        let expected = |one, eleven| {
            Sample::new("ns", [("1 segment".to_owned(), one), ("11 segments".to_owned(), eleven)])
        };
        assert_eq!(whole(&stricter("1 segment")), expected(8.25, 30.5));
        assert_eq!(whole(&stricter("11 segments")), expected(30.5, 8.25));
        assert_eq!(whole("64-byte frames"), Sample::single("ns", 8.25));
    }

    #[test]
    fn reason_is_what_follows_not_measured() {
        assert_eq!(reason("B1: not measured: no fio\n").unwrap(), "no fio");
        assert_eq!(reason("a\nthread panicked\n\nb\nc\n").unwrap(), "thread panicked | b | c");
        assert_eq!(reason("\n"), None);
    }

    #[test]
    fn program_that_is_not_there_is_named() {
        let program = Program::new("7a0a2c6", PathBuf::from("/nonexistent/benches"));
        let why = program.sample("R1", Mode::Once).unwrap_err();
        assert!(why.starts_with("7a0a2c6: ") && why.contains("/nonexistent/benches"), "{why}");
    }
}
