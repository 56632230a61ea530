//! What a configuration says that was accepted and has no effect: shown to the user as one line, however much it is.

use std::fmt::Write;

use crate::error::Origin;
use crate::output;

/// Settings that were accepted but have no effect.
///
/// ```
/// use toolstack::config::Warnings;
/// use toolstack::error::Origin;
///
/// let origin = Origin::argument("web.cfg");
/// let mut warnings = Warnings::default();
/// warnings.of_process(&origin.at(2), "memory");
/// warnings.unknown(&origin.at(3), "dsik", Some("disk"));
/// let line = "web.cfg: unknown: dsik (line 3; did you mean disk?); no effect, as a guest here is a process: memory (line 2)";
/// assert_eq!(warnings.line().unwrap(), line);
/// ```
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Warnings(Vec<Warning>);

#[derive(Clone, Debug, PartialEq, Eq)]
struct Warning {
    kind: Kind,
    origin: Origin,
    key: String,
    why: Option<String>,
}

/// In the order in which they are shown: first what is most likely a mistake.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Unknown,
    Replaced,
    NoEffect,
    OfProcess,
}

const HEADINGS: [(Kind, &str); 4] = [
    (Kind::Unknown, "unknown"),
    (Kind::Replaced, "set again"),
    (Kind::NoEffect, "no effect"),
    (Kind::OfProcess, "no effect, as a guest here is a process"),
];

impl Warnings {
    /// Adds that `key` has no effect, and why.
    pub fn no_effect(&mut self, origin: &Origin, key: &str, why: &str) {
        self.add(Kind::NoEffect, origin, key, Some(why.to_owned()));
    }

    /// Adds that `key` has no effect, as it says how a virtual machine is made.
    pub fn of_process(&mut self, origin: &Origin, key: &str) {
        self.add(Kind::OfProcess, origin, key, None);
    }

    /// Adds that nobody knows `key`, and which one may have been meant.
    pub fn unknown(&mut self, origin: &Origin, key: &str, meant: Option<&str>) {
        self.add(Kind::Unknown, origin, key, meant.map(|meant| format!("did you mean {meant}?")));
    }

    /// Adds that `key` is set again here, and what is lost by that.
    pub fn replaced(&mut self, origin: &Origin, key: &str, lost: &str) {
        self.add(Kind::Replaced, origin, key, Some(format!("{lost} is lost")));
    }

    fn add(&mut self, kind: Kind, origin: &Origin, key: &str, why: Option<String>) {
        self.0.push(Warning { kind, origin: origin.clone(), key: key.to_owned(), why });
    }

    /// All of it in one line; `None` if there is nothing.
    pub fn line(&self) -> Option<String> {
        let first = self.0.first()?.origin.name();
        let mut line = first.to_owned();
        let mut separator = ": ";
        for (kind, heading) in HEADINGS {
            let of_kind: Vec<String> =
                self.0.iter().filter(|w| w.kind == kind).map(|w| w.text(first)).collect();
            if !of_kind.is_empty() {
                // Writing to a string does not fail.
                let _ = write!(line, "{separator}{heading}: {}", of_kind.join(", "));
                separator = "; ";
            }
        }
        Some(line)
    }

    /// Writes them to standard error.
    pub fn show(&self) {
        if let Some(line) = self.line() {
            output::message(format_args!("warning: {line}"));
        }
    }
}

impl Warning {
    /// The key, and in parentheses where it is and why. `source` is named already.
    fn text(&self, source: &str) -> String {
        let place = match self.origin.line() {
            _ if self.origin.name() != source => Some(self.origin.to_string()),
            line => line.map(|line| format!("line {line}")),
        };
        let notes: Vec<String> = [place, self.why.clone()].into_iter().flatten().collect();
        match notes.is_empty() {
            true => self.key.clone(),
            false => format!("{} ({})", self.key, notes.join("; ")),
        }
    }
}
