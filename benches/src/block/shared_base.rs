//! Row B8s: a guest on an overlay of a base that others have read before, beside the same bytes as a raw image, both served by us.

use std::path::PathBuf;
use std::process::Command;

use blkback::engine::BaseCache;
use blkfront::Operation;

use super::machine::Machine;
use super::{DEPTH, IMAGE, Image, PAIRS, SETUP_FILE, TIME, ours};
use crate::missing::not_started;
use crate::row::{Goal, Row, interleave};
use crate::sample::{Sample, settled};

/// Bytes of one read that warms the cache.
const STEP: usize = 64 << 10;

/// Makes an empty qcow2 image over a raw one, beside it.
fn overlay(image: &Image, name: &str) -> Result<PathBuf, String> {
    let path = image.dir.path().join(name);
    let mut create = Command::new("qemu-img");
    create.args(["create", "-q", "-f", "qcow2", "-F", "raw", "-b"]).args([&image.path, &path]);
    let status = create.status().map_err(|e| not_started("qemu-img", "qemu-utils", &e))?;
    if status.success() { Ok(path) } else { Err(format!("qemu-img create: {status}")) }
}

/// A guest on an overlay, whose base another guest of the same dom0 has read, and which is still there.
struct Warm {
    machine: Machine,
    _other: Machine,
}

impl Warm {
    fn start(image: &Image) -> Result<Warm, String> {
        let cache = BaseCache::new(2 * IMAGE as u64).map_err(|e| format!("mapping memory: {e}"))?;
        let start = |name| {
            let params = format!("qcow2:{}", overlay(image, name)?.display());
            Machine::with_cache(&params, SETUP_FILE, cache.clone())
        };
        let mut other = start("other.qcow2")?;
        let mut bytes = vec![0; STEP];
        for at in (0..IMAGE as u64).step_by(STEP) {
            other.disk.read_at(at, &mut bytes).map_err(|e| format!("reading the base: {e}"))?;
        }
        let mut warm = Warm { machine: start("guest.qcow2")?, _other: other };
        // By the first reads the image's places become known.
        warm.run();
        Ok(warm)
    }

    fn run(&mut self) -> f64 {
        ours::run(&mut self.machine.disk, Operation::Read, DEPTH, TIME) / 1e3
    }
}

/// Our side of B8s.
///
/// # Errors
/// The images cannot be made, or the machine does not come up.
pub fn b8_shared_once() -> Result<Sample, String> {
    let image = Image::new()?;
    let mut warm = Warm::start(&image)?;
    Ok(Sample::single("k IOPS", settled(1, || warm.run())))
}

/// Row B8s: reads of a base that is cached beside those of a raw image.
///
/// # Errors
/// As [`b8_shared_once`].
pub fn b8_shared() -> Result<Row, String> {
    let image = Image::new()?;
    // A copy: nobody writes to a file that is somebody's base.
    let copy = image.dir.path().join("copy.img");
    std::fs::copy(&image.path, &copy).map_err(|e| format!("{}: {e}", copy.display()))?;
    let mut warm = Warm::start(&image)?;
    let mut raw = Machine::new(&copy.display().to_string(), SETUP_FILE)?;
    let pairs =
        interleave(PAIRS, || warm.run(), || ours::run(&mut raw.disk, Operation::Read, DEPTH, TIME) / 1e3);
    let what =
        "4 KiB random read, overlay of a base that another guest has read, depth 32; the same as a raw image";
    super::done("B8s", what, "k IOPS", Goal::AtLeast(0.95), &pairs, Default::default())
}
