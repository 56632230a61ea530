//! A guest of the demo: opens its disk and its network interface, and executes commands.

use std::io::{BufRead, Write};
use std::sync::Arc;
use std::time::{Duration, Instant};

use blkfront::{Disk, Options};
use hypervisor::Hypervisor;
use netfront::Nic;
use netfront::handshake::RxChoice;

use super::disk;
use super::net::Link;
use super::protocol::{Event, GuestCommand};
use crate::error::{Error, Result, chain};

/// The order of the disk's ring: 4 pages.
const RING_PAGE_ORDER: u32 = 2;
/// How long the interface may take to connect.
const UP_TIMEOUT: Duration = Duration::from_secs(20);

/// Executes the commands that are read from `commands` until [`GuestCommand::Quit`] or the end of the stream. Results
/// are written to `events`.
///
/// # Errors
/// The first error, which is also written to `events`.
pub fn run(hv: &Arc<dyn Hypervisor>, vdev: u32, commands: impl BufRead, events: impl Write) -> Result<()> {
    let mut writer = EventWriter { events };
    let outcome = execute(hv, vdev, commands, &mut writer);
    if let Err(error) = &outcome {
        writer.write(&Event::Failed(chain(error).to_string()));
    }
    outcome
}

fn execute(
    hv: &Arc<dyn Hypervisor>,
    vdev: u32,
    commands: impl BufRead,
    writer: &mut EventWriter<impl Write>,
) -> Result<()> {
    let options = Options { ring_page_order: RING_PAGE_ORDER, ..Options::default() };
    let mut disk =
        Disk::open_with(hv.clone(), hv.clone(), hv.clone(), vdev, options).map_err(|e| failed("disk", &e))?;
    let mut nic = open_nic(hv, RxChoice::Copy)?;
    writer.write(&Event::Ready(nic.mac()));
    for line in commands.lines() {
        let line = line.map_err(|e| Error::io("reading commands", e))?;
        match serde_json::from_str(&line).map_err(|e| failed("parsing a command", &e))? {
            GuestCommand::Disk(plan) => {
                let result = disk::run(&mut disk, &plan, &mut |event| writer.write(&event))?;
                writer.write(&Event::Disk(result));
            }
            GuestCommand::Serve(seed) => {
                let served = Link::new(&mut nic, seed).serve()?;
                writer.write(&Event::Served(served));
            }
            GuestCommand::Drive(plan) => {
                let mut link = Link::new(&mut nic, plan.seed);
                let result = link.drive(&plan, &mut |event| writer.write(&event))?;
                writer.write(&Event::Driven(result));
            }
            GuestCommand::Reopen { flip } => {
                nic.close().map_err(|e| failed("vif", &e))?;
                nic = open_nic(hv, if flip { RxChoice::Flip } else { RxChoice::Copy })?;
                writer.write(&Event::Ready(nic.mac()));
            }
            GuestCommand::Stream(plan) => {
                let mut link = Link::new(&mut nic, plan.seed);
                let stream = link.drive_stream(&plan, &mut |event| writer.write(&event))?;
                writer.write(&Event::Streamed(stream));
            }
            GuestCommand::Quit => break,
        }
    }
    nic.close().map_err(|e| failed("vif", &e))?;
    disk.close().map_err(|e| failed("disk", &e))
}

fn open_nic(hv: &Arc<dyn Hypervisor>, rx: RxChoice) -> Result<Nic> {
    let failed = |e: netfront::Error| failed("vif", &e);
    let config = netfront::Config { rx, ..netfront::Config::default() };
    let mut nic = Nic::open(hv.clone(), hv.clone(), hv.clone(), 0, config).map_err(failed)?;
    let deadline = Instant::now() + UP_TIMEOUT;
    while !nic.is_up() {
        if Instant::now() >= deadline {
            return Err(Error::Other(format!("vif: not up after {} s", UP_TIMEOUT.as_secs())));
        }
        nic.wait(false, Duration::from_millis(100)).map_err(failed)?;
    }
    Ok(nic)
}

fn failed(what: &str, error: &dyn std::error::Error) -> Error {
    Error::Other(format!("{what}: {}", chain(error)))
}

/// Writes events as JSON, one a line.
struct EventWriter<W> {
    events: W,
}

impl<W: Write> EventWriter<W> {
    /// Writes an event. An error is ignored: once the pipe is closed, reading the next command ends the guest.
    fn write(&mut self, event: &Event) {
        if let Ok(text) = serde_json::to_string(event) {
            let _ = writeln!(self.events, "{text}").and_then(|()| self.events.flush());
        }
    }
}
