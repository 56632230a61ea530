//! What one operation costs each process on its way: `--count ROW`.
//!
//! Sleeps are counted by the kernel, in `/proc/PID/task/TID/status`, while nothing else watches. System calls are counted by
//! strace in a second run, which it slows: a thread that polls before it sleeps may sleep more often then.

mod idle;
mod round_trip;
mod sleeps;
mod strace;

use sleeps::Switches;
use std::fmt::Write;
use std::path::Path;

/// Operations of the run whose sleeps are counted.
const OPERATIONS: usize = 10_000;
/// Operations of the run whose system calls are counted.
const TRACED: usize = 2_000;
/// System calls of which there are fewer in an operation are not shown: of timers and ticks.
const FEWEST: f64 = 0.005;

/// A row whose operation can be counted, or a state.
#[derive(Clone, Copy, Debug)]
pub struct Countable {
    /// The row's name.
    pub name: &'static str,
    /// Counts with that program `xpv`, in the sandbox; gives a table.
    pub count: fn(&Path) -> Result<String, String>,
}

/// Every row whose operation can be counted.
pub const COUNTABLE: &[Countable] =
    &[Countable { name: "N7", count: round_trip::tables }, Countable { name: "idle", count: idle::table }];

/// The one of that name, in upper or lower case.
///
/// # Errors
/// There is none; the text lists those that there are.
pub fn find(name: &str) -> Result<Countable, String> {
    let found = COUNTABLE.iter().copied().find(|countable| countable.name.eq_ignore_ascii_case(name));
    let names = || COUNTABLE.iter().map(|countable| countable.name).collect::<Vec<_>>().join(" ");
    found.ok_or_else(|| format!("nothing to count of row {name}; rows: {}", names()))
}

/// Whose sleeps and system calls are counted.
#[derive(Clone, PartialEq, Debug)]
pub struct Subject {
    /// For the table.
    pub name: String,
    /// A process, or one thread.
    pub id: u32,
    /// Whether all threads of process `id` are counted, and not thread `id` of this process alone.
    pub is_process: bool,
}

/// What an operation costs one subject, on average.
#[derive(Clone, PartialEq, Debug)]
struct Cost {
    name: String,
    switches: Switches,
    /// By name, the most frequent one first.
    calls: Vec<(String, f64)>,
}

/// Counts what `run` costs the subjects, which makes as many operations as it is asked for. Gives a table in Markdown.
///
/// # Errors
/// Of `run`; or strace is not installed, or may not trace.
fn table(subjects: &[Subject], mut run: impl FnMut(usize) -> Result<(), String>) -> Result<String, String> {
    run(TRACED)?;
    let before = subjects.iter().map(sleeps::of).collect::<Result<Vec<_>, _>>()?;
    run(OPERATIONS)?;
    let after = subjects.iter().map(sleeps::of).collect::<Result<Vec<_>, _>>()?;
    let traces = subjects.iter().map(strace::Trace::start).collect::<Result<Vec<_>, _>>()?;
    run(TRACED)?;
    let mut costs = Vec::new();
    for (at, trace) in traces.into_iter().enumerate() {
        let calls = trace.end()?.into_iter().map(|(name, calls)| (name, calls as f64 / TRACED as f64));
        let mut calls: Vec<_> = calls.filter(|(_, calls)| *calls >= FEWEST).collect();
        calls.sort_by(|a, b| b.1.total_cmp(&a.1));
        let switches = after[at].since(before[at]).divided_by(OPERATIONS as f64);
        costs.push(Cost { name: subjects[at].name.clone(), switches, calls });
    }
    Ok(markdown(&costs))
}

/// A table with a line a subject, and one for all of them.
fn markdown(costs: &[Cost]) -> String {
    let mut text = String::from(
        "| process | sleeps, each ended by a wake-up | preempted | system calls | which |\n|---|--:|--:|--:|---|\n",
    );
    let mut line = |name: &str, switches: Switches, calls: f64, which: &str| {
        let Switches { slept, preempted } = switches;
        let _ = writeln!(text, "| {name} | {slept:.2} | {preempted:.2} | {calls:.2} | {which} |");
    };
    for cost in costs {
        let which: Vec<String> =
            cost.calls.iter().map(|(name, calls)| format!("{name} {calls:.2}")).collect();
        line(&cost.name, cost.switches, cost.all_calls(), &which.join(", "));
    }
    let switches = costs.iter().fold(Switches::default(), |sum, cost| sum.and(cost.switches));
    line("all", switches, costs.iter().map(Cost::all_calls).sum(), "");
    text
}

impl Cost {
    fn all_calls(&self) -> f64 {
        self.calls.iter().map(|(_, calls)| calls).sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn markdown_sums_what_each_process_costs() {
        let cost = |name: &str, slept| Cost {
            name: name.to_owned(),
            switches: Switches { slept, preempted: 0.25 },
            calls: vec![("read".to_owned(), 2.0), ("write".to_owned(), 1.5)],
        };
        let text = markdown(&[cost("guest", 2.0), cost("dom0", 1.0)]);
        assert!(text.contains("| guest | 2.00 | 0.25 | 3.50 | read 2.00, write 1.50 |\n"), "{text}");
        assert!(text.ends_with("| all | 3.00 | 0.50 | 7.00 |  |\n"), "{text}");
    }

    #[test]
    fn find_lists_what_can_be_counted() {
        assert_eq!(find("n7").unwrap().name, "N7");
        assert!(find("R1").unwrap_err().ends_with("rows: N7 idle"));
    }
}
