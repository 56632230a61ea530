//! A guest as the demo sees it: orders go in, events come out.

use std::io::{BufRead, BufReader, Write};
use std::process::{ChildStdin, ChildStdout, Stdio};
use std::sync::mpsc::Sender;

use super::words::{Event, Order};
use crate::error::{Error, Result};
use crate::machine::Machine;
use crate::machine::process::{self, Fate, Owned};

/// A guest of the demo.
#[derive(Debug)]
pub struct Peer {
    /// Its name.
    pub name: String,
    /// Its process.
    pub process: Owned,
    orders: ChildStdin,
}

/// Starts a guest's process; its standard input and output are pipes.
///
/// # Errors
/// The system's.
pub fn start(machine: &Machine, name: &str) -> Result<Owned> {
    let log = machine.dir.log(name);
    let mut command = process::command(&machine.dir, &Fate { ours: true, log: Some(log) })?;
    command.arg("demo-guest").arg(name).stdin(Stdio::piped()).stdout(Stdio::piped());
    process::spawn(command)
}

impl Peer {
    /// Takes over a guest's process. Its events go to `events`, each with `index`; `None` when it says no more.
    ///
    /// # Errors
    /// The system refuses a thread.
    pub fn new(
        name: &str,
        mut process: Owned,
        index: usize,
        events: Sender<(usize, Option<Event>)>,
    ) -> Result<Peer> {
        let (orders, said) = process.pipes().ok_or_else(|| Error::other("a guest without pipes"))?;
        let listen = move || listen(said, index, &events);
        std::thread::Builder::new()
            .name(name.into())
            .spawn(listen)
            .map_err(|e| Error::io("starting a thread", e))?;
        Ok(Peer { name: name.to_owned(), process, orders })
    }

    /// Orders something.
    ///
    /// # Errors
    /// The guest is gone.
    pub fn order(&mut self, order: &Order) -> Result<()> {
        let text = serde_json::to_string(order).map_err(|e| Error::Other(e.to_string()))?;
        let sent = writeln!(self.orders, "{text}").and_then(|()| self.orders.flush());
        sent.map_err(|e| Error::io(format!("ordering {}", self.name), e))
    }
}

fn listen(said: ChildStdout, index: usize, events: &Sender<(usize, Option<Event>)>) {
    for line in BufReader::new(said).lines().map_while(|line| line.ok()) {
        let event =
            serde_json::from_str(&line).unwrap_or_else(|e| Event::Failed(format!("it said {line:?}: {e}")));
        if events.send((index, Some(event))).is_err() {
            return;
        }
    }
    let _ = events.send((index, None));
}
