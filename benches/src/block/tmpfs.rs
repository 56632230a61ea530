//! Row B3: random reads, and writes, of a file in memory, so that no disk is the limit.

use super::machine::Machine;
use super::{DEPTH, Image, PAIRS, SETUP_FILE, TIME, done, fio, ours, peer};
use crate::row::{Goal, Row, interleave};
use crate::sample::{Sample, settled};
use blkfront::Operation;
use std::cell::RefCell;

/// The two halves of B3.
const B3_READ: (Operation, &str) = (Operation::Read, "randread");
const B3_WRITE: (Operation, &str) = (Operation::Write, "randwrite");

/// Our reads of B3.
///
/// # Errors
/// There is no tmpfs, or as [`b2_once`].
pub fn b3_read_once() -> Result<Sample, String> {
    b3_once(B3_READ.0)
}

/// Our writes of B3.
///
/// # Errors
/// As [`b3_read_once`].
pub fn b3_write_once() -> Result<Sample, String> {
    b3_once(B3_WRITE.0)
}

fn b3_once(operation: Operation) -> Result<Sample, String> {
    let image = Image::on_tmpfs()?;
    let mut machine = Machine::new(&image.path_text(), SETUP_FILE)?;
    let run = || ours::run(&mut machine.disk, operation, DEPTH, TIME) / 1e3;
    Ok(Sample::single("k IOPS", settled(1, run)))
}

/// Row B3, reads: io_uring on one file in memory.
///
/// # Errors
/// There is no tmpfs, or as [`b1`].
pub fn b3_read() -> Result<Row, String> {
    b3("B3", B3_READ)
}

/// Row B3, writes.
///
/// # Errors
/// As [`b3_read`].
pub fn b3_write() -> Result<Row, String> {
    b3("B3w", B3_WRITE)
}

fn b3(name: &'static str, (operation, rw): (Operation, &str)) -> Result<Row, String> {
    fio::check()?;
    let image = Image::on_tmpfs()?;
    let mut machine = Machine::new(&image.path_text(), SETUP_FILE)?;
    let failed = RefCell::new(None);
    let file = format!("--filename={}", image.path.display());
    // As ours: past the page cache where the file allows it, which a tmpfs of Linux 6.6 and later does.
    let direct = format!("--direct={}", u8::from(image.allows_direct_io()));
    let arguments = ["--ioengine=io_uring", &direct, &file];
    let pairs = interleave(
        PAIRS,
        || ours::run(&mut machine.disk, operation, DEPTH, TIME) / 1e3,
        || peer(&failed, || fio::run(rw, DEPTH, TIME, &arguments)) / 1e3,
    );
    let what = format!("4 KiB {rw}, file on tmpfs, depth 32; fio --ioengine=io_uring {direct}");
    done(name, &what, "k IOPS", Goal::AtLeast(1.0), &pairs, failed)
}
