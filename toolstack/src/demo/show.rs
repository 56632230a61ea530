//! Live progress: bars on a terminal, a line for each phase elsewhere, nothing at all for programs.

use std::io::IsTerminal;
use std::time::Duration;

use indicatif::{MultiProgress, ProgressBar, ProgressStyle};

use super::words::Progress;

/// Where progress is shown.
pub enum Show {
    /// A bar for each guest, and one for the machine.
    Bars {
        /// The machine's.
        main: ProgressBar,
        /// The guests'.
        guests: Vec<ProgressBar>,
    },
    /// Lines.
    Lines {
        /// The guests' names, and the phase each was last seen in.
        guests: Vec<(String, String)>,
    },
    /// Nothing.
    Nothing,
}

impl Show {
    /// For these guests. Nothing is shown where `quiet`.
    pub fn new(names: &[&str], quiet: bool) -> Show {
        if quiet {
            return Show::Nothing;
        }
        if !std::io::stderr().is_terminal() {
            return Show::Lines { guests: names.iter().map(|n| ((*n).to_owned(), String::new())).collect() };
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
        Show::Bars { main, guests: guests.collect() }
    }

    /// The machine does something else now.
    pub fn step(&self, what: &str) {
        match self {
            Show::Bars { main, .. } => main.set_message(what.to_owned()),
            Show::Lines { .. } => eprintln!("{what}"),
            Show::Nothing => {}
        }
    }

    /// A guest is so far.
    pub fn progress(&mut self, guest: usize, progress: &Progress) {
        match self {
            Show::Bars { guests, .. } => {
                guests[guest].set_length(progress.total.max(1));
                guests[guest].set_position(progress.done);
                guests[guest].set_message(progress.phase.clone());
            }
            Show::Lines { guests } => {
                let (name, phase) = &mut guests[guest];
                if *phase != progress.phase {
                    progress.phase.clone_into(phase);
                    eprintln!("  {name}: {phase}");
                }
            }
            Show::Nothing => {}
        }
    }

    /// All is over: the bars go.
    pub fn end(&self) {
        if let Show::Bars { main, guests } = self {
            guests.iter().for_each(ProgressBar::finish_and_clear);
            main.finish_and_clear();
        }
    }
}
