//! Rows B5 and B5p: what both ends of the split driver add to the latency of a disk.
//!
//! The peer is the bare file, read one block after the other by one process. Asleep, ours also needs what any two processes
//! need that tell each other by turns; that is measured with eventfds.

use super::machine::{Machine, Setup, run_on};
use super::{Image, PAIRS, TIME, done, fio, ours, peer};
use crate::cargo::{self, EVENTFD_ECHO};
use crate::process::Process;
use crate::row::{Goal, Row, interleave};
use crate::sample::{Sample, settled};
use blkfront::{Disk, Operation};
use nix::sys::eventfd::EventFd;
use std::cell::RefCell;
use std::os::fd::AsFd;
use std::process::Command;
use std::time::{Duration, Instant};

/// Neither end polls.
pub(crate) const ASLEEP: Setup = Setup { ring_page_order: 0, busy_poll: Duration::ZERO };
/// Both ends poll for longer than the disk takes.
const POLLING: Setup = Setup { ring_page_order: 0, busy_poll: Duration::from_millis(5) };
const UNIT: &str = "us";

/// Our side of B5.
///
/// # Errors
/// As [`super::b2_once`].
pub fn b5_once() -> Result<Sample, String> {
    once(ASLEEP)
}

/// Our side of B5p.
///
/// # Errors
/// As [`super::b2_once`].
pub fn b5_polling_once() -> Result<Sample, String> {
    once(POLLING)
}

fn once(setup: Setup) -> Result<Sample, String> {
    let image = Image::new()?;
    let mut machine = Machine::new(&image.path_text(), setup)?;
    Ok(Sample::single(UNIT, settled(1, || latency(&mut machine.disk))))
}

/// Row B5: both ends sleep.
///
/// # Errors
/// As [`super::b1`].
pub fn b5() -> Result<Row, String> {
    let echo = Echo::start()?;
    let what = "4 KiB random read, file, O_DIRECT, depth 1, asleep; fio --ioengine=io_uring --direct=1 \
        and a ping-pong of eventfds between two processes";
    row("B5", what, ASLEEP, Goal::AtMost(1.2), || echo.round_trip())
}

/// Row B5p: both ends poll.
///
/// # Errors
/// As [`super::b1`].
pub fn b5_polling() -> Result<Row, String> {
    let what = "4 KiB random read, file, O_DIRECT, depth 1, polling; fio --ioengine=io_uring --direct=1";
    row("B5p", what, POLLING, Goal::AtMostAbove(1.0), || Ok(0.0))
}

/// A row whose peer takes as long as the file's read and `told` together.
fn row(
    name: &'static str,
    what: &str,
    setup: Setup,
    goal: Goal,
    told: impl Fn() -> Result<f64, String>,
) -> Result<Row, String> {
    fio::check()?;
    let image = Image::new()?;
    let mut machine = Machine::new(&image.path_text(), setup)?;
    let failed = RefCell::new(None);
    let file = format!("--filename={}", image.path.display());
    let arguments = ["--ioengine=io_uring", "--direct=1", &file];
    let bare = || Ok(1e6 / fio::run("randread", 1, TIME, &arguments)? + told()?);
    let pairs = interleave(PAIRS, || latency(&mut machine.disk), || peer(&failed, bare));
    done(name, what, UNIT, goal, &pairs, failed)
}

/// Microseconds a read.
fn latency(disk: &mut Disk) -> f64 {
    1e6 / ours::run(disk, Operation::Read, 1, TIME)
}

/// A process on the other core that answers each event.
struct Echo {
    to: EventFd,
    from: EventFd,
    _process: Process,
}

impl Echo {
    fn start() -> Result<Echo, String> {
        let program = cargo::build_here(EVENTFD_ECHO)?;
        let failed = |e: nix::Error| format!("an eventfd: {e}");
        let to = EventFd::new().map_err(failed)?;
        let from = EventFd::new().map_err(failed)?;
        let inherited = |event: &EventFd| event.as_fd().try_clone_to_owned();
        let input = inherited(&to).map_err(|e| format!("an eventfd: {e}"))?;
        let output = inherited(&from).map_err(|e| format!("an eventfd: {e}"))?;
        // As the two ends of the disk: a core each.
        run_on(1);
        let process = Process::start(Command::new(program).stdin(input).stdout(output), "eventfd_echo");
        run_on(0);
        Ok(Echo { to, from, _process: process? })
    }

    /// Microseconds from an event to its answer.
    fn round_trip(&self) -> Result<f64, String> {
        let failed = |e: nix::Error| format!("an eventfd's round trip: {e}");
        let mut count = 0u32;
        let start = Instant::now();
        while start.elapsed() < TIME {
            self.to.write(1).map_err(failed)?;
            self.from.read().map_err(failed)?;
            count += 1;
        }
        Ok(start.elapsed().as_secs_f64() * 1e6 / f64::from(count))
    }
}
