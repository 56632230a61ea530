//! Rows B1 to B8s: a disk through both ends of the split driver, beside fio; and S2d, several beside each other.
//!
//! Ours is a whole machine of threads: guest and dom0 are two domains of the local hypervisor, with a grant mapped and
//! unmapped for every request. The peer is one process that does the same I/O itself, or by way of a server.

mod allocating;
mod fair;
mod fio;
mod large;
mod latency;
mod machine;
mod ours;
mod qcow2;
mod queues;
mod shared_base;
mod tmpfs;

use nix::fcntl::OFlag;
use nix::sys::statfs::{TMPFS_MAGIC, statfs};
use std::cell::RefCell;
use std::fs::File;
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::row::{Goal, Row, interleave};
use crate::sample::{Sample, settled};
use blkfront::{Disk, Operation};
use machine::{Machine, Setup};

pub use allocating::{b8_allocating, b8_allocating_once, b8_allocating_one, b8_allocating_one_once};
pub use fair::{s2d, s2d_once, s2d_one, s2d_one_once};
pub use large::{b6_read, b6_read_once, b6_write, b6_write_once};
pub use latency::{b5, b5_once, b5_polling, b5_polling_once};
pub use qcow2::{b8, b8_once, b8_write, b8_write_once};
pub use queues::{b7, b7_once};
pub use shared_base::{b8_shared, b8_shared_once};
pub use tmpfs::{b3_read, b3_read_once, b3_write, b3_write_once};

/// Requests in flight, ours and the peer's.
const DEPTH: usize = 32;
/// One measurement; fio rounds its own start-up away only from about here on.
const TIME: Duration = Duration::from_millis(700);
const PAIRS: usize = 7;
/// Bytes of the image.
const IMAGE: usize = 256 << 20;

/// What one request path costs: a ring of several pages, and polling that outlasts a request.
const SETUP_NULL: Setup = Setup { ring_page_order: 2, busy_poll: Duration::from_micros(200) };
/// One page, as with a stock frontend.
const SETUP_FILE: Setup = Setup { ring_page_order: 0, busy_poll: Duration::from_micros(20) };
/// The null engine with 100 GiB.
const NULL: &str = "null:107374182400";

/// Our reads a second.
fn read(disk: &mut Disk) -> f64 {
    ours::run(disk, Operation::Read, DEPTH, TIME)
}

/// Our side of B1.
///
/// # Errors
/// The machine does not come up.
pub fn b1_once() -> Result<Sample, String> {
    let mut machine = Machine::new(NULL, SETUP_NULL)?;
    Ok(Sample::single("M IOPS", settled(1, || read(&mut machine.disk) / 1e6)))
}

/// Row B1: the null engine on both sides.
///
/// # Errors
/// The peer is missing, or the machine does not come up.
pub fn b1() -> Result<Row, String> {
    fio::check()?;
    let mut machine = Machine::new(NULL, SETUP_NULL)?;
    let failed = RefCell::new(None);
    let pairs = interleave(
        PAIRS,
        || read(&mut machine.disk) / 1e6,
        || peer(&failed, || fio::run("randread", DEPTH, TIME, &["--ioengine=null", "--size=100g"])) / 1e6,
    );
    let what = "4 KiB random read, null engine, one queue, depth 32; fio --ioengine=null";
    done("B1", what, "M IOPS", Goal::AtLeast(1.0), &pairs, failed)
}

/// Our side of B2.
///
/// # Errors
/// The image cannot be written, or the machine does not come up.
pub fn b2_once() -> Result<Sample, String> {
    let image = Image::new()?;
    let mut machine = Machine::new(&image.path_text(), SETUP_FILE)?;
    Ok(Sample::single("k IOPS", settled(1, || read(&mut machine.disk) / 1e3)))
}

/// Row B2: io_uring past the page cache on one file.
///
/// # Errors
/// As [`b1`].
pub fn b2() -> Result<Row, String> {
    fio::check()?;
    let image = Image::new()?;
    let mut machine = Machine::new(&image.path_text(), SETUP_FILE)?;
    let failed = RefCell::new(None);
    let file = format!("--filename={}", image.path.display());
    let arguments = ["--ioengine=io_uring", "--direct=1", &file];
    let pairs = interleave(
        PAIRS,
        || read(&mut machine.disk) / 1e3,
        || peer(&failed, || fio::run("randread", DEPTH, TIME, &arguments)) / 1e3,
    );
    let what = "4 KiB random read, file, O_DIRECT, depth 32; fio --ioengine=io_uring --direct=1";
    done("B2", what, "k IOPS", Goal::AtLeast(0.98), &pairs, failed)
}

/// Our side of B4, its NBD half.
///
/// # Errors
/// As [`b2_once`].
pub fn b4_nbd_once() -> Result<Sample, String> {
    let image = Image::new()?;
    let mut machine = Machine::new(&image.raw(), SETUP_FILE)?;
    Ok(Sample::single("k IOPS", settled(1, || read(&mut machine.disk) / 1e3)))
}

/// Row B4, its NBD half: the same file behind qemu-nbd.
///
/// # Errors
/// As [`b1`].
pub fn b4_nbd() -> Result<Row, String> {
    fio::check()?;
    let image = Image::new()?;
    let mut machine = Machine::new(&image.raw(), SETUP_FILE)?;
    let socket = image.dir.path().join("nbd.sock");
    // A copy: our disk holds a lock that qemu-nbd's own would meet, and both would share one page cache.
    let copy = image.dir.path().join("copy.img");
    std::fs::copy(&image.path, &copy).map_err(|e| format!("{}: {e}", copy.display()))?;
    let _nbd = fio::Nbd::serve(&copy, &socket)?;
    let failed = RefCell::new(None);
    let uri = format!("--uri=nbd+unix:///?socket={}", socket.display());
    let pairs = interleave(
        PAIRS,
        || read(&mut machine.disk) / 1e3,
        || peer(&failed, || fio::run("randread", DEPTH, TIME, &["--ioengine=nbd", &uri])) / 1e3,
    );
    let what = "the same beside NBD: qemu-nbd --cache=none --aio=io_uring, fio --ioengine=nbd";
    done("B4n", what, "k IOPS", Goal::AtLeast(4.0), &pairs, failed)
}

/// A disk on a file whose both ends sleep, as row B5's, read block by block.
pub(crate) struct ReadsOneByOne {
    machine: Machine,
    _image: Image,
}

impl ReadsOneByOne {
    /// # Errors
    /// As [`b2_once`].
    pub(crate) fn start() -> Result<ReadsOneByOne, String> {
        let image = Image::new()?;
        Ok(ReadsOneByOne { machine: Machine::new(&image.path_text(), latency::ASLEEP)?, _image: image })
    }

    /// Makes so many reads, each after the last one.
    pub(crate) fn read(&mut self, count: usize) {
        ours::run_while(&mut self.machine.disk, Operation::Read, 1, |made| made < count as u64);
    }
}

/// An image with content, in a directory that is removed with it.
struct Image {
    path: PathBuf,
    dir: tempfile::TempDir,
}

impl Image {
    /// Where `XPV_BENCH_DIR` says; it must not be a tmpfs.
    fn new() -> Result<Image, String> {
        let base = std::env::var_os("XPV_BENCH_DIR").map_or_else(std::env::temp_dir, PathBuf::from);
        Image::in_directory(&base, "XPV_BENCH_DIR")
    }

    /// Where `XPV_BENCH_TMPFS` says, or else in /dev/shm; it must be a tmpfs.
    fn on_tmpfs() -> Result<Image, String> {
        let base = std::env::var_os("XPV_BENCH_TMPFS").map_or_else(|| "/dev/shm".into(), PathBuf::from);
        let kind = statfs(&base).map(|statfs| statfs.filesystem_type());
        if kind != Ok(TMPFS_MAGIC) {
            return Err(format!(
                "{} is not a tmpfs: XPV_BENCH_TMPFS names another directory",
                base.display()
            ));
        }
        Image::in_directory(&base, "XPV_BENCH_TMPFS")
    }

    fn in_directory(base: &Path, variable: &str) -> Result<Image, String> {
        let failed = |e| {
            format!(
                "no image of {} MiB in {}: {e}: {variable} names another directory",
                IMAGE >> 20,
                base.display()
            )
        };
        let dir = tempfile::tempdir_in(base).map_err(failed)?;
        let path = dir.path().join("disk.img");
        fill(&path).map_err(failed)?;
        Ok(Image { path, dir })
    }

    /// Whether its I/O can bypass the page cache.
    fn allows_direct_io(&self) -> bool {
        File::options().read(true).custom_flags(OFlag::O_DIRECT.bits()).open(&self.path).is_ok()
    }

    fn path_text(&self) -> String {
        self.path.display().to_string()
    }

    /// Declared as raw rather than probed.
    fn raw(&self) -> String {
        format!("raw:{}", self.path.display())
    }
}

/// Content that no layer below can leave out.
fn fill(path: &Path) -> std::io::Result<()> {
    let mut file = File::create(path)?;
    let mut state = 1u64;
    let mut block = vec![0u8; 1 << 20];
    for _ in 0..IMAGE >> 20 {
        for word in block.chunks_exact_mut(8) {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            word.copy_from_slice(&state.to_le_bytes());
        }
        file.write_all(&block)?;
    }
    file.sync_all()
}

/// A peer's figure; its first failure is kept, and its figure is then of no use.
fn peer(failed: &RefCell<Option<String>>, run: impl FnOnce() -> Result<f64, String>) -> f64 {
    run().unwrap_or_else(|why| {
        failed.borrow_mut().get_or_insert(why);
        f64::NAN
    })
}

fn done(
    name: &'static str,
    what: &str,
    unit: &'static str,
    goal: Goal,
    pairs: &[(f64, f64)],
    failed: RefCell<Option<String>>,
) -> Result<Row, String> {
    match failed.into_inner() {
        Some(why) => Err(why),
        None => Ok(Row::new(name, what, unit, goal, pairs)),
    }
}
