//! The driver's end of a guest process: sends commands, receives events.

use std::io::{BufRead, BufReader, Write};
use std::process::{ChildStdin, ChildStdout, Stdio};
use std::sync::mpsc::Sender;

use super::protocol::{Event, GuestCommand};
use crate::error::{Error, Result};
use crate::machine::Machine;
use crate::machine::process::{self, ChildProcess, ProcessOptions};

/// A guest's process, and the pipe to its standard input.
#[derive(Debug)]
pub struct Peer {
    /// The guest's name.
    pub name: String,
    /// The guest's process.
    pub process: ChildProcess,
    commands: ChildStdin,
}

/// Starts a guest's process with pipes as standard input and output.
pub fn start(machine: &Machine, name: &str) -> Result<ChildProcess> {
    let log = machine.dir.log(name);
    let mut command =
        process::command(&machine.dir, &ProcessOptions { die_with_parent: true, log: Some(log) })?;
    command.arg("demo-guest").arg(name).stdin(Stdio::piped()).stdout(Stdio::piped());
    process::spawn(command)
}

impl Peer {
    /// Starts a thread that sends the process's events to `events`, each with `index`; `None` at the end of its output.
    ///
    /// # Errors
    /// [`Error::Io`] if no thread can be started; [`Error::Other`] if the process has no pipes.
    pub fn new(
        name: &str,
        mut process: ChildProcess,
        index: usize,
        events: Sender<(usize, Option<Event>)>,
    ) -> Result<Peer> {
        let (commands, output) = process.pipes().ok_or_else(|| Error::other("a guest without pipes"))?;
        let forward = move || forward(output, index, &events);
        std::thread::Builder::new()
            .name(name.into())
            .spawn(forward)
            .map_err(|e| Error::io("starting a thread", e))?;
        Ok(Peer { name: name.to_owned(), process, commands })
    }

    /// Sends a command.
    ///
    /// # Errors
    /// [`Error::Io`] if the guest has closed the pipe.
    pub fn send(&mut self, command: &GuestCommand) -> Result<()> {
        let text = serde_json::to_string(command).map_err(|e| Error::Other(e.to_string()))?;
        let sent = writeln!(self.commands, "{text}").and_then(|()| self.commands.flush());
        sent.map_err(|e| Error::io(format!("sending a command to {}", self.name), e))
    }
}

/// Sends each line of a guest's output as an event, until the end of the output.
fn forward(output: ChildStdout, index: usize, events: &Sender<(usize, Option<Event>)>) {
    for line in BufReader::new(output).lines().map_while(|line| line.ok()) {
        let event = serde_json::from_str(&line)
            .unwrap_or_else(|e| Event::Failed(format!("parsing the event {line:?}: {e}")));
        if events.send((index, Some(event))).is_err() {
            return;
        }
    }
    let _ = events.send((index, None));
}
