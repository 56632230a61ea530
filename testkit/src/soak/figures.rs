//! What a machine's processes hold, compared with the least that they held with as many devices.

use std::collections::HashMap;
use std::fs;
use std::io;

/// Kilobytes of memory by which a process may differ from the least that it had: what its allocator keeps of what was
/// freed, in as many arenas as it had threads.
const MEMORY_SLACK: u64 = 16 << 10;

/// Descriptors that a process may still open after it reported that it is ready, where the least is counted then.
const LATE_DESCRIPTORS: u64 = 2;

/// A number that must not grow.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Figure {
    /// What it counts, and for how many devices.
    pub what: String,
    /// The number.
    pub value: u64,
    /// By how much it may differ from the least.
    pub slack: u64,
}

impl Figure {
    /// A number that must be the same for equally many devices.
    pub fn exact(what: String, value: usize) -> Figure {
        Figure { what, value: value as u64, slack: 0 }
    }
}

/// Counts descriptors, threads, mapped arenas and memory of a process; `name` says which one, and what it serves.
///
/// `arenas` is the number of arenas, and so of descriptors, that the process may have or not: a guest's arena is made for
/// its first device and stays, and a dead guest's is unmapped when the next one is mapped.
///
/// # Errors
/// It does not run.
pub fn process_figures(pid: u32, name: &str, arenas: usize) -> io::Result<Vec<Figure>> {
    let descriptors = fs::read_dir(format!("/proc/{pid}/fd"))?.count();
    let maps = fs::read_to_string(format!("/proc/{pid}/maps"))?;
    let mapped = maps.lines().filter(|line| line.contains("xpv-arena")).count();
    let status = fs::read_to_string(format!("/proc/{pid}/status"))?;
    let anonymous = status.lines().find_map(|line| line.strip_prefix("RssAnon:"));
    let anonymous = anonymous.and_then(|text| text.trim().trim_end_matches(" kB").parse().ok());
    let memory = anonymous.ok_or_else(|| io::Error::other("no RssAnon in the process's status"))?;
    let bounded = |what: &str, value, slack| Figure { what: format!("{what} of {name}"), value, slack };
    Ok(vec![
        bounded("descriptors", descriptors as u64, arenas as u64 + LATE_DESCRIPTORS),
        bounded("threads", threads(pid)?, 0),
        bounded("arenas", mapped as u64, arenas as u64),
        bounded("kilobytes", memory, MEMORY_SLACK),
    ])
}

/// Counts the threads of a process, but for those that the kernel makes and ends as io_uring needs them.
fn threads(pid: u32) -> io::Result<u64> {
    let mut count = 0;
    for task in fs::read_dir(format!("/proc/{pid}/task"))? {
        // A thread may have ended since.
        let name = fs::read_to_string(task?.path().join("comm")).unwrap_or_else(|_| "iou-".into());
        count += u64::from(!name.starts_with("iou-"));
    }
    Ok(count)
}

/// The least of each figure.
#[derive(Clone, Debug, Default)]
pub struct Baseline(HashMap<String, u64>);

impl Baseline {
    /// Notes the least of each figure.
    ///
    /// # Errors
    /// The figures that exceed what was the least before by more than their slack.
    pub fn check(&mut self, figures: &[Figure]) -> Result<(), String> {
        let mut excess = Vec::new();
        for Figure { what, value, slack } in figures {
            let least = self.0.entry(what.clone()).or_insert(*value);
            if *value > *least + slack {
                excess.push(format!("{what}: {value}, {least} before"));
            }
            *least = (*least).min(*value);
        }
        if excess.is_empty() { Ok(()) } else { Err(excess.join("; ")) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figure_that_exceeds_its_least_by_more_than_its_slack_is_reported() {
        let mut baseline = Baseline::default();
        let figure = |what: &str, value| Figure { what: what.into(), value, slack: 2 };
        for value in [9, 5, 7] {
            baseline.check(&[figure("a", value)]).unwrap();
        }
        baseline.check(&[figure("b", 100)]).unwrap();
        assert_eq!(baseline.check(&[figure("a", 8), figure("b", 100)]), Err("a: 8, 5 before".into()));
    }

    #[test]
    fn descriptor_and_thread_of_this_process_are_counted() {
        let figures = || process_figures(std::process::id(), "this", 0).unwrap();
        let value = |figures: &[Figure], n: usize| figures[n].value;
        let before = figures();
        let files: Vec<_> = (0..100).map(|_| fs::File::open("/dev/null").unwrap()).collect();
        assert!(value(&figures(), 0) >= value(&before, 0) + 50, "{before:?}");
        drop(files);
        assert!(value(&before, 1) >= 1 && value(&before, 3) > 0);
    }
}
