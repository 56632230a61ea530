//! All rows by name, in the table's order.

use crate::cargo::{self, XPV};
use crate::link::{self, LinkRow};
use crate::row::{Better, Row};
use crate::sample::Sample;
use crate::xen::{self, Counted};
use crate::{block, cost, guests, net, outage, ring, sandbox};
use std::path::{Path, PathBuf};

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
    /// With a clock, of a program `xpv` that may be of another revision, in network namespaces of its own.
    Program(OfProgram),
    /// In instructions, which are the same each time.
    Counted(Counted),
}

/// What of a program is measured.
#[derive(Clone, Copy, Debug)]
pub enum OfProgram {
    /// Traffic between two guests.
    Link(LinkRow),
    /// What guests keep of their traffic while another floods their bridge.
    Flood,
    /// Processor time of a guest's receiving.
    Cost,
    /// Stalls while dom0 is replaced.
    Outage,
    /// Many guests on one dom0.
    Guests,
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

const fn link(better: Better, row: LinkRow) -> Entry {
    let what = "namespace to namespace, through two guests and dom0";
    Entry { name: row.name, what, better, method: Method::Program(OfProgram::Link(row)) }
}

/// Every row there is.
pub const ROWS: &[Entry] = &[
    timed("R1", "ring, one thread", Better::Lower, ring::r1, ring::r1_once),
    timed("R2", "ring, two threads", Better::Higher, ring::r2, ring::r2_once),
    timed("R3", "ring, one thread, 1 segment", Better::Lower, ring::r3, ring::r3_once),
    timed("B1", "4 KiB random read, null engine, depth 32", Better::Higher, block::b1, block::b1_once),
    timed("B2", "4 KiB random read, file, O_DIRECT, depth 32", Better::Higher, block::b2, block::b2_once),
    timed("B3", "4 KiB random read, tmpfs, depth 32", Better::Higher, block::b3_read, block::b3_read_once),
    timed(
        "B3w",
        "4 KiB random write, tmpfs, depth 32",
        Better::Higher,
        block::b3_write,
        block::b3_write_once,
    ),
    timed("B4n", "4 KiB random read, raw file, depth 32", Better::Higher, block::b4_nbd, block::b4_nbd_once),
    timed("B5", "4 KiB random read, file, depth 1, asleep", Better::Lower, block::b5, block::b5_once),
    timed(
        "B5p",
        "4 KiB random read, file, depth 1, polling",
        Better::Lower,
        block::b5_polling,
        block::b5_polling_once,
    ),
    timed("B6", "1 MiB sequential read, tmpfs", Better::Higher, block::b6_read, block::b6_read_once),
    timed("B6w", "1 MiB sequential write, tmpfs", Better::Higher, block::b6_write, block::b6_write_once),
    timed("B7", "4 KiB random read, null engine, two queues", Better::Higher, block::b7, block::b7_once),
    timed("B8", "4 KiB random read, qcow2", Better::Higher, block::b8, block::b8_once),
    timed(
        "B8w",
        "4 KiB random write, qcow2, allocated",
        Better::Higher,
        block::b8_write,
        block::b8_write_once,
    ),
    timed("S2d", "two disks of depth 32 beside a hog", Better::Higher, block::s2d, block::s2d_once),
    timed("S2d1", "two disks of depth 1 beside a hog", Better::Higher, block::s2d_one, block::s2d_one_once),
    timed("N1", "64-byte frames, guest -> dom0", Better::Higher, net::n1, net::n1_once),
    timed("N1g", "64-byte frames, guest -> bridge -> guest", Better::Higher, net::n1_guest, net::guest_once),
    timed("N2", "64-byte frames, guest -> bridge -> guest", Better::Higher, net::n2, net::guest_once),
    timed("N2c", "N2 beside a busy process", Better::Higher, net::n2_contended, net::contended_once),
    timed("N2f", "N2 with rates, lock and VLAN", Better::Higher, net::n2_features, net::features_once),
    timed("N3", "64 KiB frames, guest to guest", Better::Higher, net::bandwidth::n3, net::bandwidth::n3_once),
    timed(
        "N3s",
        "1,514-byte frames, guest to guest",
        Better::Higher,
        net::bandwidth::n3_short,
        net::bandwidth::n3_short_once,
    ),
    timed("N3f", "page flipped into a guest, and back", Better::Lower, net::flip::n3f, net::flip::n3f_once),
    Entry {
        name: cost::NAME,
        what: "a GB from dom0's interface to a guest",
        better: Better::Lower,
        method: Method::Program(OfProgram::Cost),
    },
    link(Better::Higher, link::N4),
    link(Better::Lower, link::N7),
    link(Better::Higher, link::N7R),
    link(Better::Higher, link::N7C),
    link(Better::Higher, link::N8),
    link(Better::Higher, link::N8F),
    Entry {
        name: guests::NAME,
        what: "many guests with a disk and an interface each",
        better: Better::Lower,
        method: Method::Program(OfProgram::Guests),
    },
    Entry {
        name: link::flood::NAME,
        what: "two guests beside one that floods their bridge",
        better: Better::Higher,
        method: Method::Program(OfProgram::Flood),
    },
    Entry {
        name: outage::NAME,
        what: "stall of a guest's I/O",
        better: Better::Lower,
        method: Method::Program(OfProgram::Outage),
    },
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
    /// Measures ours and the peers'; of a row of programs, of that program `xpv` or else of this tree's.
    ///
    /// # Errors
    /// Why it could not be measured, and what to do about it.
    pub fn measure(&self, xpv: Option<&Path>) -> Result<Vec<Row>, String> {
        match self.method {
            Method::Timed { row, .. } => Ok(vec![row()?]),
            Method::Counted(counted) => Ok(vec![counted.row(self.name)?]),
            Method::Program(of) if sandbox::is_inside() => of.rows(&program(xpv)?),
            Method::Program(_) => sandbox::run(&[self.name, "--json"], &program(xpv)?),
        }
    }

    /// Measures one sample of ours; of a row of programs, of that one as [`Self::measure`] does.
    ///
    /// # Errors
    /// As [`Self::measure`].
    pub fn once(&self, xpv: Option<&Path>) -> Result<Sample, String> {
        match self.method {
            Method::Timed { once, .. } => once(),
            Method::Counted(counted) => counted.once(),
            Method::Program(of) if sandbox::is_inside() => of.once(&program(xpv)?),
            Method::Program(_) => {
                let samples: Vec<Sample> = sandbox::run(&["--once", self.name], &program(xpv)?)?;
                samples.into_iter().next().ok_or_else(|| "no sample was printed".to_owned())
            }
        }
    }
}

/// That program, or else this tree's `xpv`, which is built.
///
/// # Errors
/// It does not build.
pub fn program(xpv: Option<&Path>) -> Result<PathBuf, String> {
    xpv.map_or_else(|| cargo::build_here(XPV), |path| Ok(path.to_owned()))
}

impl OfProgram {
    fn rows(self, xpv: &Path) -> Result<Vec<Row>, String> {
        match self {
            Self::Link(row) => row.rows(xpv),
            Self::Flood => link::flood::rows(xpv),
            Self::Cost => cost::rows(xpv),
            Self::Outage => outage::rows(xpv),
            Self::Guests => guests::rows(xpv),
        }
    }

    fn once(self, xpv: &Path) -> Result<Sample, String> {
        match self {
            Self::Link(row) => row.once(xpv),
            Self::Flood => link::flood::once(xpv),
            Self::Cost => cost::once(xpv),
            Self::Outage => outage::once(xpv),
            Self::Guests => guests::once(xpv),
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
