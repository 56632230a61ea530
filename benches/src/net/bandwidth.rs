//! Rows N3 and N3s: bytes a second from guest to guest, in long frames and in frames of 1,514 bytes, beside the memory's own speed.

use super::{PAIRS, TIME, ours};
use crate::cores::{self, pin};
use crate::row::{Goal, Row, interleave};
use crate::sample::Sample;
use ring_abi::PAGE_SIZE;
use std::cell::RefCell;
use std::hint::black_box;
use std::time::Instant;

/// Unsegmented TCP: 45 segments of 1,448 bytes, and their headers.
const LONG: usize = 54 + 45 * 1448;
/// A frame of the usual MTU.
const SHORT: usize = 1_514;
/// Pages that a ring has in use.
const PAGES: usize = 256;

/// Bytes a second, in GB, from guest to guest.
fn between_guests(cores: [usize; 2], len: usize) -> Result<f64, String> {
    let rate = match len > SHORT {
        true => ours::gso_to_guest(cores, len, TIME),
        false => ours::to_guest(cores, len, TIME),
    };
    rate.map(|rate| rate * len as f64 / 1e3)
}

/// Bytes a second, in GB, of a copy of frames of `len` bytes from the pages of one ring into those of another.
fn copied(core: usize, len: usize) -> f64 {
    pin(core);
    let source = vec![1u8; PAGES * PAGE_SIZE];
    let mut dest = vec![2u8; PAGES * PAGE_SIZE];
    let stride = len.next_multiple_of(PAGE_SIZE);
    let mut bytes = 0;
    let start = Instant::now();
    while start.elapsed() < TIME / 4 {
        for at in (0..source.len() - stride).step_by(stride) {
            black_box(&mut dest)[at..at + len].copy_from_slice(&black_box(&source)[at..at + len]);
            bytes += len;
        }
    }
    bytes as f64 / start.elapsed().as_secs_f64() / 1e9
}

fn row(name: &str, what: &str, goal: Goal, len: usize) -> Result<Row, String> {
    let cores = cores::two()?;
    let failed = RefCell::new(None);
    let ours = || {
        between_guests(cores, len).unwrap_or_else(|error| {
            failed.borrow_mut().get_or_insert(error);
            f64::NAN
        })
    };
    let pairs = interleave(PAIRS, ours, || copied(cores[1], len));
    let what = format!("{what}, guest -> bridge -> guest; memcpy of the same bytes over the rings' pages");
    failed.into_inner().map_or_else(|| Ok(Row::new(name, what, "GB/s", goal, &pairs)), Err)
}

/// Row N3.
///
/// # Errors
/// The machine does not come up.
pub fn n3() -> Result<Row, String> {
    row("N3", "unsegmented TCP in frames of 65,214 bytes", Goal::AtLeast(0.8), LONG)
}

/// Row N3s.
///
/// # Errors
/// As [`n3`].
pub fn n3_short() -> Result<Row, String> {
    row("N3s", "frames of 1,514 bytes", Goal::AtLeast(0.35), SHORT)
}

/// Our side of N3.
///
/// # Errors
/// As [`n3`].
pub fn n3_once() -> Result<Sample, String> {
    Ok(Sample::single("GB/s", between_guests(cores::two()?, LONG)?))
}

/// Our side of N3s.
///
/// # Errors
/// As [`n3`].
pub fn n3_short_once() -> Result<Sample, String> {
    Ok(Sample::single("GB/s", between_guests(cores::two()?, SHORT)?))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn long_frame_is_taken_whole_from_guest_to_guest() {
        let cores = cores::two().unwrap_or([0, 0]);
        let rate = ours::gso_to_guest(cores, LONG, Duration::from_millis(50)).unwrap();
        assert!(rate > 0.0, "{rate}");
        assert!(copied(cores[0], LONG) > 0.0);
    }
}
