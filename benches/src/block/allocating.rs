//! Rows B8a and B8a1: writes to clusters of a qcow2 image that are not there yet, beside qemu-storage-daemon.

use std::cell::RefCell;
use std::path::PathBuf;
use std::process::Command;

use blkfront::Operation;

use super::machine::{Machine, run_on};
use super::{DEPTH, PAIRS, SETUP_FILE, TIME, done, fio, ours, peer};
use crate::missing::not_started;
use crate::row::{Goal, Row, interleave};
use crate::sample::{Sample, settled};

/// Of the disk: of so many clusters few are written twice, and few L2 tables have to be allocated.
const SIZE: &str = "8G";

/// An empty image, in a directory that is removed with it; each run has one of its own.
struct Empty {
    path: PathBuf,
    dir: tempfile::TempDir,
}

impl Empty {
    fn new() -> Result<Empty, String> {
        let base = std::env::var_os("XPV_BENCH_DIR").map_or_else(std::env::temp_dir, PathBuf::from);
        let dir = tempfile::tempdir_in(&base).map_err(|e| format!("{}: {e}", base.display()))?;
        let path = dir.path().join("disk.qcow2");
        let mut create = Command::new("qemu-img");
        create.args(["create", "-q", "-f", "qcow2"]).arg(&path).arg(SIZE);
        let status = create.status().map_err(|e| not_started("qemu-img", "qemu-utils", &e))?;
        if status.success() { Ok(Empty { path, dir }) } else { Err(format!("qemu-img create: {status}")) }
    }
}

/// Our writes a second, in thousands.
fn run(depth: usize) -> Result<f64, String> {
    let image = Empty::new()?;
    let mut machine = Machine::new(&format!("qcow2:{}", image.path.display()), SETUP_FILE)?;
    Ok(ours::run(&mut machine.disk, Operation::Write, depth, TIME) / 1e3)
}

/// The peer's.
fn run_peer(depth: usize) -> Result<f64, String> {
    let image = Empty::new()?;
    let socket = image.dir.path().join("nbd.sock");
    // A core for each side, as ours have.
    run_on(1);
    let server = fio::Nbd::serve_qcow2(&image.path, &socket);
    run_on(0);
    let _server = server?;
    let uri = format!("--uri=nbd+unix:///disk?socket={}", socket.display());
    Ok(fio::run("randwrite", depth, TIME, &["--ioengine=nbd", &uri])? / 1e3)
}

fn once(depth: usize) -> Result<Sample, String> {
    let failed = RefCell::new(None);
    let value = settled(1, || peer(&failed, || run(depth)));
    match failed.into_inner() {
        Some(why) => Err(why),
        None => Ok(Sample::single("k IOPS", value)),
    }
}

fn row(name: &'static str, depth: usize) -> Result<Row, String> {
    fio::check()?;
    let failed = RefCell::new(None);
    let pairs = interleave(PAIRS, || peer(&failed, || run(depth)), || peer(&failed, || run_peer(depth)));
    let what = format!(
        "4 KiB random write, empty qcow2 image, depth {depth}; qemu-storage-daemon (cache.direct=on, aio=io_uring) by NBD, fio --ioengine=nbd"
    );
    done(name, &what, "k IOPS", Goal::AtLeast(1.0), &pairs, failed)
}

/// Our side of B8a.
///
/// # Errors
/// The image cannot be made, or the machine does not come up.
pub fn b8_allocating_once() -> Result<Sample, String> {
    once(DEPTH)
}

/// Row B8a: one writer of depth 32.
///
/// # Errors
/// As [`b8_allocating_once`]; the peer is missing.
pub fn b8_allocating() -> Result<Row, String> {
    row("B8a", DEPTH)
}

/// Our side of B8a1.
///
/// # Errors
/// As [`b8_allocating_once`].
pub fn b8_allocating_one_once() -> Result<Sample, String> {
    once(1)
}

/// Row B8a1: one writer of depth 1.
///
/// # Errors
/// As [`b8_allocating`].
pub fn b8_allocating_one() -> Result<Row, String> {
    row("B8a1", 1)
}
