//! All rows by name, in the table's order.

use crate::row::{Better, Row};
use crate::sample::Sample;
use crate::xen::{self, Counted};
use crate::{block, net, ring};

/// A row and the ways to measure it.
#[derive(Clone, Copy, Debug)]
pub struct Entry {
    /// The name in the table.
    pub name: &'static str,
    /// What our side does, in a few words.
    pub what: &'static str,
    /// Which of two of our figures is the better one.
    pub better: Better,
    /// How it is measured.
    pub method: Method,
}

/// How a row is measured.
#[derive(Clone, Copy, Debug)]
pub enum Method {
    /// With a clock.
    Timed {
        /// Both sides alternately.
        row: fn() -> Result<Row, String>,
        /// One sample of our side.
        once: fn() -> Result<Sample, String>,
    },
    /// In instructions, which are the same each time.
    Counted(Counted),
}

const fn timed(
    name: &'static str,
    what: &'static str,
    better: Better,
    row: fn() -> Result<Row, String>,
    once: fn() -> Result<Sample, String>,
) -> Entry {
    Entry { name, what, better, method: Method::Timed { row, once } }
}

const fn counted(name: &'static str, what: &'static str, counted: Counted) -> Entry {
    Entry { name, what, better: Better::Lower, method: Method::Counted(counted) }
}

/// Every row there is.
pub const ROWS: &[Entry] = &[
    timed("R1", "ring, one thread", Better::Lower, ring::r1, ring::r1_once),
    timed("R2", "ring, two threads", Better::Higher, ring::r2, ring::r2_once),
    timed("R3", "ring, one thread, 1 segment", Better::Lower, ring::r3, ring::r3_once),
    timed("B1", "4 KiB random read, null engine, depth 32", Better::Higher, block::b1, block::b1_once),
    timed("B2", "4 KiB random read, file, O_DIRECT, depth 32", Better::Higher, block::b2, block::b2_once),
    timed("B4n", "4 KiB random read, raw file, depth 32", Better::Higher, block::b4_nbd, block::b4_nbd_once),
    timed("N1", "64-byte frames, guest -> dom0", Better::Higher, net::n1, net::n1_once),
    timed("N1g", "64-byte frames, guest -> bridge -> guest", Better::Higher, net::n1_guest, net::guest_once),
    timed("N2", "64-byte frames, guest -> bridge -> guest", Better::Higher, net::n2, net::guest_once),
    counted("X1", "real Xen, a stock guest's 4 KiB read", xen::X1),
    counted("X1q", "real Xen, a stock guest's 4 KiB read", xen::X1_QUEUED),
    counted("X2", "real Xen, a frame of a stock guest's", xen::X2),
    counted("X2s", "real Xen, a frame of a stock guest's", xen::X2_SINGLE),
    counted("X2l", "real Xen, a frame of a stock guest's", xen::X2_LARGE),
];

/// The row of that name, in upper or lower case.
///
/// # Errors
/// There is none; the text lists those that there are.
pub fn find(name: &str) -> Result<&'static Entry, String> {
    let found = ROWS.iter().find(|entry| entry.name.eq_ignore_ascii_case(name));
    found.ok_or_else(|| {
        format!("no row {name}; rows: {}", ROWS.iter().map(|entry| entry.name).collect::<Vec<_>>().join(" "))
    })
}

impl Entry {
    /// Whether it is measured with a clock.
    pub fn is_timed(&self) -> bool {
        matches!(self.method, Method::Timed { .. })
    }

    /// Measures ours and the peer's.
    ///
    /// # Errors
    /// Why it could not be measured, and what to do about it.
    pub fn measure(&self) -> Result<Row, String> {
        match self.method {
            Method::Timed { row, .. } => row(),
            Method::Counted(counted) => counted.row(self.name),
        }
    }

    /// Measures one sample of ours.
    ///
    /// # Errors
    /// As [`Self::measure`].
    pub fn once(&self) -> Result<Sample, String> {
        match self.method {
            Method::Timed { once, .. } => once(),
            Method::Counted(counted) => counted.once(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn find_ignores_case_and_lists_rows_otherwise() {
        assert_eq!(find("x2L").unwrap().name, "X2l");
        assert!(find("Z9").unwrap_err().contains("R1 R2 R3"));
    }
}
