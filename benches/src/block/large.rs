//! Rows B6 and B6w: sequential reads, and writes, of 1 MiB each, which are indirect requests, of a file in memory.

use super::machine::{Machine, Setup};
use super::{Image, PAIRS, TIME, done, fio, peer};
use crate::row::{Goal, Row, interleave};
use crate::sample::{Sample, settled};
use blkfront::{Completion, Disk, Operation, Request};
use std::cell::RefCell;
use std::time::{Duration, Instant};

/// Bytes a request.
const BLOCK: usize = 1 << 20;
/// Requests in flight.
const DEPTH: usize = 8;
const SETUP: Setup = Setup { ring_page_order: 0, busy_poll: Duration::from_micros(20) };
const READ: (Operation, &str) = (Operation::Read, "read");
const WRITE: (Operation, &str) = (Operation::Write, "write");

/// Our side of B6.
///
/// # Errors
/// There is no tmpfs, or as [`super::b2_once`].
pub fn b6_read_once() -> Result<Sample, String> {
    once(READ.0)
}

/// Our side of B6w.
///
/// # Errors
/// As [`b6_read_once`].
pub fn b6_write_once() -> Result<Sample, String> {
    once(WRITE.0)
}

/// Row B6, reads.
///
/// # Errors
/// As [`super::b3_read`].
pub fn b6_read() -> Result<Row, String> {
    row("B6", READ)
}

/// Row B6, writes.
///
/// # Errors
/// As [`super::b3_read`].
pub fn b6_write() -> Result<Row, String> {
    row("B6w", WRITE)
}

fn once(operation: Operation) -> Result<Sample, String> {
    let image = Image::on_tmpfs()?;
    let mut machine = Machine::new(&image.path_text(), SETUP)?;
    Ok(Sample::single("MiB/s", settled(1, || run(&mut machine.disk, operation))))
}

fn row(name: &'static str, (operation, rw): (Operation, &str)) -> Result<Row, String> {
    fio::check()?;
    let image = Image::on_tmpfs()?;
    let mut machine = Machine::new(&image.path_text(), SETUP)?;
    let failed = RefCell::new(None);
    let file = format!("--filename={}", image.path.display());
    let direct = format!("--direct={}", u8::from(image.allows_direct_io()));
    // The last of two counts.
    let arguments = ["--ioengine=io_uring", &direct, &file, "--bs=1m"];
    let pairs = interleave(
        PAIRS,
        || run(&mut machine.disk, operation),
        || peer(&failed, || fio::run(rw, DEPTH, TIME, &arguments)),
    );
    let what =
        format!("1 MiB sequential {rw}, file on tmpfs, depth {DEPTH}; fio --ioengine=io_uring {direct}");
    done(name, &what, "MiB/s", Goal::AtLeast(0.95), &pairs, failed)
}

/// Keeps requests for one block after the other in flight for a time; MiB a second.
///
/// # Panics
/// If the disk fails a request.
fn run(disk: &mut Disk, operation: Operation) -> f64 {
    let sectors = (BLOCK / 512) as u64;
    let blocks = disk.info().expect("a connected disk").sectors / sectors;
    let mut numbers = (0..blocks).cycle();
    let mut next = move || numbers.next().unwrap_or_default() * sectors;
    for token in 0..DEPTH as u64 {
        let buffer = Some(disk.buffer(BLOCK).expect("pages"));
        let request = Request { token, operation, sector: next(), bytes: BLOCK, buffer };
        disk.submit(request).expect("room in the ring");
    }
    let start = Instant::now();
    let mut done: Vec<Completion> = Vec::with_capacity(DEPTH);
    let mut count = 0u64;
    while disk.in_flight() > 0 {
        let goes_on = start.elapsed() < TIME;
        count += disk.wait(&mut done, None).expect("a backend") as u64;
        for completion in done.drain(..) {
            completion.check().expect("the disk serves");
            if goes_on {
                let request = Request { sector: next(), ..completion.request };
                disk.submit(request).expect("room in the ring");
            }
        }
    }
    count as f64 / start.elapsed().as_secs_f64()
}
