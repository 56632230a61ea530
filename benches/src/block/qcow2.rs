//! Rows B8 and B8w: a qcow2 image whose clusters are all there, beside the same bytes as a raw image, both served by us.

use std::path::PathBuf;
use std::process::Command;

use blkfront::Operation;

use super::machine::Machine;
use super::{DEPTH, Image, PAIRS, SETUP_FILE, TIME, ours};
use crate::row::{Goal, Row, interleave};
use crate::sample::{Sample, settled};

/// Makes a qcow2 image of a raw one, beside it.
fn convert(image: &Image) -> Result<PathBuf, String> {
    let path = image.dir.path().join("image.qcow2");
    let mut convert = Command::new("qemu-img");
    convert.args(["convert", "-f", "raw", "-O", "qcow2"]).args([&image.path, &path]);
    let status = convert.status().map_err(|e| format!("qemu-img: {e}"))?;
    if status.success() { Ok(path) } else { Err(format!("qemu-img convert: {status}")) }
}

fn once(operation: Operation) -> Result<Sample, String> {
    let image = Image::new()?;
    let path = convert(&image)?;
    let mut machine = Machine::new(&format!("qcow2:{}", path.display()), SETUP_FILE)?;
    let mut run = || ours::run(&mut machine.disk, operation, DEPTH, TIME) / 1e3;
    // By the first reads the image's places become known.
    run();
    Ok(Sample::single("k IOPS", settled(1, run)))
}

fn beside_raw(
    name: &'static str,
    operation: Operation,
    what: &'static str,
    goal: f64,
) -> Result<Row, String> {
    let image = Image::new()?;
    let path = convert(&image)?;
    let mut qcow2 = Machine::new(&format!("qcow2:{}", path.display()), SETUP_FILE)?;
    let mut raw = Machine::new(&image.path_text(), SETUP_FILE)?;
    ours::run(&mut qcow2.disk, operation, DEPTH, TIME);
    let pairs = interleave(
        PAIRS,
        || ours::run(&mut qcow2.disk, operation, DEPTH, TIME) / 1e3,
        || ours::run(&mut raw.disk, operation, DEPTH, TIME) / 1e3,
    );
    super::done(name, what, "k IOPS", Goal::AtLeast(goal), &pairs, Default::default())
}

/// Our side of B8.
///
/// # Errors
/// The images cannot be made, or the machine does not come up.
pub fn b8_once() -> Result<Sample, String> {
    once(Operation::Read)
}

/// Row B8: reads of a qcow2 image beside those of a raw one.
///
/// # Errors
/// As [`b8_once`].
pub fn b8() -> Result<Row, String> {
    let what = "4 KiB random read, qcow2 with known tables, depth 32; the same as a raw image";
    beside_raw("B8", Operation::Read, what, 0.9)
}

/// Our side of B8w.
///
/// # Errors
/// As [`b8_once`].
pub fn b8_write_once() -> Result<Sample, String> {
    once(Operation::Write)
}

/// Row B8w: writes to clusters of a qcow2 image that are there beside those to a raw image.
///
/// # Errors
/// As [`b8_once`].
pub fn b8_write() -> Result<Row, String> {
    let what = "4 KiB random write, qcow2, allocated, depth 32; the same as a raw image";
    beside_raw("B8w", Operation::Write, what, 0.85)
}
