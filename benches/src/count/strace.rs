//! System calls of a process, by strace.

use super::{Subject, sleeps};
use crate::process::{Process, wait_until};
use nix::sys::signal::Signal;
use std::fs;
use std::process::{Command, Stdio};

const PACKAGE: &str = "strace";

/// A strace that counts.
pub(super) struct Trace {
    name: String,
    process: Process,
    directory: tempfile::TempDir,
}

impl Trace {
    /// Starts to count, once all threads are traced.
    ///
    /// # Errors
    /// strace is not installed, or may not trace.
    pub(super) fn start(subject: &Subject) -> Result<Self, String> {
        let directory = tempfile::tempdir().map_err(|e| format!("a directory for strace: {e}"))?;
        let mut command = Command::new("strace");
        command.args(["-c", "-q", "-o"]).arg(directory.path().join("calls"));
        command.args(["-p", &subject.id.to_string()]);
        if subject.is_process {
            command.arg("-f");
        }
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        let mut process = Process::start(&mut command, PACKAGE)?;
        let mut has_ended = false;
        wait_until(&format!("strace traces {}", subject.name), || {
            has_ended = process.has_ended();
            has_ended || is_traced(subject)
        })?;
        if has_ended {
            return Err(format!("strace may not trace {}: run as root", subject.name));
        }
        Ok(Self { name: subject.name.clone(), process, directory })
    }

    /// Ends it; the calls by name.
    ///
    /// # Errors
    /// It wrote no table.
    pub(super) fn end(self) -> Result<Vec<(String, u64)>, String> {
        self.process.end(Signal::SIGINT);
        let text = fs::read_to_string(self.directory.path().join("calls"));
        text.map(|text| parse(&text)).map_err(|e| format!("strace of {}: {e}", self.name))
    }
}

fn is_traced(subject: &Subject) -> bool {
    let traced = |directory: &String| {
        let status = fs::read_to_string(format!("{directory}/status")).unwrap_or_default();
        sleeps::field(&status, "TracerPid").is_some_and(|tracer| tracer != 0)
    };
    sleeps::threads(subject).is_ok_and(|threads| threads.iter().all(traced))
}

/// Lines `% time, seconds, usecs/call, calls, [errors,] syscall` between two rules.
fn parse(table: &str) -> Vec<(String, u64)> {
    let call = |line: &str| {
        let columns: Vec<&str> = line.split_whitespace().collect();
        let name = columns.last().filter(|name| **name != "total")?;
        let [first, _, _, calls, ..] = columns[..] else { return None };
        first.parse::<f64>().ok()?;
        Some(((*name).to_owned(), calls.parse().ok()?))
    };
    table.lines().filter_map(call).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn table_of_strace_is_parsed() {
        let table = "% time     seconds  usecs/call     calls    errors syscall\n\
            ------ ----------- ----------- --------- --------- ----------------\n \
            50.00    0.000010           1        12           readv\n \
            50.00    0.000010           1        34         5 epoll_wait\n\
            ------ ----------- ----------- --------- --------- ----------------\n\
            100.00    0.000020           1        46         5 total\n";
        assert_eq!(parse(table), [("readv".to_owned(), 12), ("epoll_wait".to_owned(), 34)]);
    }
}
