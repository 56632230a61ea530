//! A change of a running guest's image that takes long: shows how far it is, and cancels it where the command is interrupted.

use std::io::IsTerminal;
use std::path::PathBuf;
use std::sync::atomic::Ordering;

use super::live::{LiveDisk, Outcome};
use crate::control::client::ServedJob;
use crate::error::{Error, Origin, Result};
use crate::machine::process;
use crate::output;

/// Steps of what is shown where it is no terminal, in tenths of a percent.
const STEP: u64 = 100;

/// The file below a disk's image.
///
/// # Errors
/// The image is raw, or has none.
pub(super) fn find_backing(disk: &LiveDisk<'_>) -> Result<PathBuf> {
    let refuse = |key, found: &str, expected| Origin::argument("DEV").invalid(key, found, expected);
    let image = disk
        .image()?
        .ok_or_else(|| refuse("disk: format", "raw", "a qcow2 image: a raw one has no backing file"))?;
    let backing = image.layers.get(1).cloned();
    backing.ok_or_else(|| refuse("disk: backing file", "none", "an image with a backing file"))
}

/// Has dom0 make a change, and waits until it has ended. A signal cancels it.
///
/// # Errors
/// No dom0 answers in time.
pub(super) fn change(disk: &LiveDisk<'_>, action: &str) -> Result<Outcome> {
    let interrupted = process::interrupt_flag()?;
    let mut shown = Shown { action, is_terminal: std::io::stderr().is_terminal(), last: None };
    let outcome = disk.change_watched(action, None, &mut |job| {
        shown.show(job);
        interrupted.load(Ordering::Relaxed)
    });
    shown.end(matches!(outcome, Ok(Outcome::Made)));
    outcome
}

/// The error that dom0 went away while it made a change.
pub(super) fn replaced(action: &str) -> Error {
    Error::other(format!(
        "{action}: dom0 was replaced meanwhile; nothing is lost, and the command goes on where it is run again"
    ))
}

/// What is shown of a change.
struct Shown<'a> {
    action: &'a str,
    is_terminal: bool,
    /// What was shown last, in tenths of a percent.
    last: Option<u64>,
}

impl Shown<'_> {
    fn show(&mut self, job: &ServedJob) {
        let (Some(done), Some(total)) = (job.done, job.total.filter(|total| *total > 0)) else { return };
        let tenths = (u128::from(done) * 1000 / u128::from(total)) as u64;
        let is_new = match self.last {
            None => true,
            Some(last) if self.is_terminal => tenths > last,
            Some(last) => tenths / STEP > last / STEP,
        };
        if !is_new {
            return;
        }
        self.last = Some(tenths);
        let what = format!("{}: {}.{} % of {total} bytes", self.action, tenths / 10, tenths % 10);
        match self.is_terminal {
            true => output::progress(format_args!("\r{what}")),
            false => output::progress(format_args!("{what}\n")),
        }
    }

    fn end(&self, is_made: bool) {
        match (self.is_terminal, is_made) {
            (true, true) => output::progress(format_args!("\r{}: 100.0 %\x1b[K\n", self.action)),
            (true, false) if self.last.is_some() => output::progress(format_args!("\n")),
            (false, true) => output::progress(format_args!("{}: 100.0 %\n", self.action)),
            (_, false) => {}
        }
    }
}
