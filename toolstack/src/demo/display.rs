//! Shows progress: bars on a terminal, a line for each phase if standard error is no terminal, nothing with `--json`.

use std::io::IsTerminal;
use std::time::Duration;

use indicatif::{MultiProgress, ProgressBar, ProgressStyle};

use super::protocol::Progress;

/// How progress is shown.
pub enum ProgressDisplay {
    /// Progress bars on a terminal.
    Bars {
        /// The bar of the driver.
        main: ProgressBar,
        /// The bars of the guests.
        guests: Vec<ProgressBar>,
    },
    /// Lines on standard error.
    Lines {
        /// The guests' names, and the phase last shown of each.
        guests: Vec<(String, String)>,
    },
    /// No output.
    Hidden,
}

impl ProgressDisplay {
    /// Creates a display for these guests, hidden if `quiet`.
    pub fn new(names: &[&str], quiet: bool) -> ProgressDisplay {
        if quiet {
            return ProgressDisplay::Hidden;
        }
        if !std::io::stderr().is_terminal() {
            return ProgressDisplay::Lines {
                guests: names.iter().map(|n| ((*n).to_owned(), String::new())).collect(),
            };
        }
        let all = MultiProgress::new();
        let style = |template: &str| {
            ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar())
        };
        let main = all.add(ProgressBar::new_spinner());
        main.set_style(style("{spinner} {msg} {elapsed}"));
        main.enable_steady_tick(Duration::from_millis(100));
        let guests = names.iter().map(|name| {
            let bar = all.add(ProgressBar::new(1));
            bar.set_style(style("  {prefix:6} [{bar:30}] {percent:>3} % {msg}"));
            bar.set_prefix((*name).to_owned());
            bar
        });
        ProgressDisplay::Bars { main, guests: guests.collect() }
    }

    /// Shows the driver's next step.
    pub fn step(&self, what: &str) {
        match self {
            ProgressDisplay::Bars { main, .. } => main.set_message(what.to_owned()),
            ProgressDisplay::Lines { .. } => eprintln!("{what}"),
            ProgressDisplay::Hidden => {}
        }
    }

    /// Shows a guest's progress.
    pub fn update(&mut self, guest: usize, progress: &Progress) {
        match self {
            ProgressDisplay::Bars { guests, .. } => {
                guests[guest].set_length(progress.total.max(1));
                guests[guest].set_position(progress.done);
                guests[guest].set_message(progress.phase.clone());
            }
            ProgressDisplay::Lines { guests } => {
                let (name, phase) = &mut guests[guest];
                if *phase != progress.phase {
                    progress.phase.clone_into(phase);
                    eprintln!("  {name}: {phase}");
                }
            }
            ProgressDisplay::Hidden => {}
        }
    }

    /// Removes the bars.
    pub fn finish(&self) {
        if let ProgressDisplay::Bars { main, guests } = self {
            guests.iter().for_each(ProgressBar::finish_and_clear);
            main.finish_and_clear();
        }
    }
}
