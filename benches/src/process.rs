//! Programs that a row starts and ends.

use crate::missing::not_started;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use std::io::{BufRead, BufReader};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// Longest wait for anything that a program should do.
pub const BOUND: Duration = Duration::from_secs(20);

/// A process that is killed when this is dropped.
#[derive(Debug)]
pub struct Process(Child);

impl Process {
    /// Starts a program of that Debian package.
    ///
    /// # Errors
    /// It is not installed, or does not start.
    pub fn start(command: &mut Command, package: &str) -> Result<Self, String> {
        let program = command.get_program().to_string_lossy().into_owned();
        command.spawn().map(Self).map_err(|e| not_started(&program, package, &e))
    }

    /// Starts a program that prints `ready` when it is, and waits for that.
    ///
    /// # Errors
    /// As [`Self::start`]; or it ends before it is ready.
    pub fn start_ready(command: &mut Command, package: &str) -> Result<Self, String> {
        let mut process = Self::start(command.stdout(Stdio::piped()), package)?;
        let mut line = String::new();
        let output = process.0.stdout.take().expect("a pipe");
        let read = BufReader::new(output).read_line(&mut line);
        match read {
            Ok(_) if line == "ready\n" => Ok(process),
            _ => Err(format!("{} ended before it was ready", command.get_program().display())),
        }
    }

    /// The process's id.
    pub fn pid(&self) -> u32 {
        self.0.id()
    }

    /// Sends SIGTERM or SIGKILL, and waits until the process has ended.
    pub fn end(mut self, signal: Signal) {
        let _ = kill(Pid::from_raw(self.0.id().cast_signed()), signal);
        let _ = self.0.wait();
    }

    /// Whether the process has ended.
    pub fn has_ended(&mut self) -> bool {
        !matches!(self.0.try_wait(), Ok(None))
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Runs a program of that Debian package to its end, and gives what it printed.
///
/// # Errors
/// It is not installed or fails; then with the last line of its errors.
pub fn output(command: &mut Command, package: &str) -> Result<String, String> {
    let program = command.get_program().to_string_lossy().into_owned();
    let output = command.stdin(Stdio::null()).output().map_err(|e| not_started(&program, package, &e))?;
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    if output.status.success() {
        return Ok(said);
    }
    let errors = String::from_utf8_lossy(&output.stderr).into_owned();
    let last = |text: &str| text.lines().rev().find(|line| !line.trim().is_empty()).map(str::to_owned);
    let why = last(&errors).or_else(|| last(&said)).unwrap_or_else(|| output.status.to_string());
    Err(format!("{program}: {}", why.trim()))
}

/// Waits until `is_done`, which is asked every millisecond.
///
/// # Errors
/// It is not within [`BOUND`].
pub fn wait_until(what: &str, mut is_done: impl FnMut() -> bool) -> Result<(), String> {
    let deadline = Instant::now() + BOUND;
    while !is_done() {
        if Instant::now() >= deadline {
            return Err(format!("not within {} s: {what}", BOUND.as_secs()));
        }
        std::thread::park_timeout(Duration::from_millis(1));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn output_of_a_failed_program_is_its_last_error() {
        let why =
            output(Command::new("sh").args(["-c", "echo a >&2; echo b >&2; exit 3"]), "dash").unwrap_err();
        assert_eq!(why, "sh: b");
        let why = output(&mut Command::new("no-such-program"), "nothing").unwrap_err();
        assert_eq!(why, "`no-such-program` is not installed: apt-get install nothing");
    }

    #[test]
    fn program_that_ends_before_it_is_ready_is_an_error() {
        assert!(Process::start_ready(Command::new("sh").args(["-c", "echo ready"]), "dash").is_ok());
        assert!(Process::start_ready(&mut Command::new("true"), "coreutils").is_err());
    }
}
