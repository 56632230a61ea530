//! What is going on, on stderr: a bar on a terminal, else a line when it begins.

use indicatif::{ProgressBar, ProgressStyle};
use std::io::{IsTerminal, stderr};
use std::time::Duration;

/// Shown until it is dropped.
pub(super) struct Progress(Option<ProgressBar>);

impl Progress {
    /// Of work in `steps` equal steps.
    pub(super) fn bar(text: &str, steps: usize) -> Self {
        Self::new(text, Some(steps), "{msg} {wide_bar} {pos}/{len} {elapsed}, {eta} to go")
    }

    /// Of work that cannot be divided.
    pub(super) fn spinner(text: &str) -> Self {
        Self::new(text, None, "{spinner} {msg} {elapsed}")
    }

    fn new(text: &str, steps: Option<usize>, template: &str) -> Self {
        if !stderr().is_terminal() {
            eprintln!("{text}");
            return Self(None);
        }
        let bar = steps.map_or_else(ProgressBar::new_spinner, |steps| ProgressBar::new(steps as u64));
        bar.set_style(ProgressStyle::with_template(template).expect("a valid template"));
        bar.set_message(text.to_owned());
        bar.enable_steady_tick(Duration::from_secs(1));
        Self(Some(bar))
    }

    /// One more step is done.
    pub(super) fn step(&self) {
        if let Some(bar) = &self.0 {
            bar.inc(1);
        }
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        if let Some(bar) = &self.0 {
            bar.finish_and_clear();
        }
    }
}
