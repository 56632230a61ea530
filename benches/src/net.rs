//! Rows N1, N2, N2c and N2f: 64-byte frames out of a guest, and through the bridge into another.
//!
//! Ours runs on a machine of threads over the local hypervisor, with a grant copy for every frame. Both sides poll, as
//! DPDK's do.

pub mod bandwidth;
mod busy;
pub mod dpdk;
pub mod flip;
mod guests;
pub mod ours;
mod pump;
pub mod veth;

use crate::cores;
use crate::row::{Goal, Row, interleave};
use crate::sample::Sample;
use std::cell::RefCell;
use std::time::Duration;

/// The smallest frame, without its checksum of 4 bytes as everywhere in software.
const SMALL: usize = 64;
const TIME: Duration = Duration::from_millis(700);
/// testpmd takes seconds to start.
const DPDK_PAIRS: usize = 5;
const PAIRS: usize = 7;

/// Measures both alternately and keeps the first error.
fn row(
    name: &'static str,
    what: &str,
    goal: Goal,
    pairs: usize,
    ours: impl Fn() -> Result<f64, String>,
    peer: impl Fn() -> Result<f64, String>,
) -> Result<Row, String> {
    let failed = RefCell::new(None);
    let keep = |result: Result<f64, String>| {
        result.unwrap_or_else(|error| {
            failed.borrow_mut().get_or_insert(error);
            f64::NAN
        })
    };
    let pairs = interleave(pairs, || keep(ours()), || keep(peer()));
    match failed.into_inner() {
        Some(error) => Err(error),
        None => Ok(Row::new(name, what, "Mpps", goal, &pairs)),
    }
}

/// Our side of N1.
///
/// # Errors
/// The machine does not come up.
pub fn n1_once() -> Result<Sample, String> {
    Ok(Sample::single("Mpps", ours::to_dom0(cores::two()?, SMALL, TIME)?))
}

/// Our side of N1g and of N2.
///
/// # Errors
/// As [`n1_once`].
pub fn guest_once() -> Result<Sample, String> {
    Ok(Sample::single("Mpps", ours::to_guest(cores::two()?, SMALL, TIME)?))
}

/// Row N1, guest to dom0.
///
/// # Errors
/// DPDK or its huge pages are missing, or the machine does not come up.
pub fn n1() -> Result<Row, String> {
    dpdk::check()?;
    let cores = cores::two()?;
    let what = "64-byte frames, guest -> dom0; testpmd: vhost rxonly, virtio-user txonly";
    let ours = || ours::to_dom0(cores, SMALL, TIME);
    row("N1", what, Goal::AtLeast(2.0), DPDK_PAIRS, ours, || dpdk::to_vhost(cores, SMALL))
}

/// Row N1, guest to bridge to guest: both guests on one core, bridge and backend on the other.
///
/// # Errors
/// As [`n1`].
pub fn n1_guest() -> Result<Row, String> {
    dpdk::check()?;
    let cores = cores::two()?;
    let what = "64-byte frames, guest -> bridge -> guest; testpmd: vhost rxonly, virtio-user txonly";
    let ours = || ours::to_guest(cores, SMALL, TIME);
    row("N1g", what, Goal::AtLeast(2.0), DPDK_PAIRS, ours, || dpdk::to_vhost(cores, SMALL))
}

/// Row N2: the same beside Linux.
///
/// # Errors
/// Namespaces are not allowed here, or the machine does not come up.
pub fn n2() -> Result<Row, String> {
    let cores = cores::two()?;
    let what = "64-byte frames, guest -> bridge -> guest; Linux bridge with veth, AF_PACKET sender";
    let ours = || ours::to_guest(cores, SMALL, TIME);
    row("N2", what, Goal::AtLeast(10.0), PAIRS, ours, || veth::through_linux(cores[0], SMALL, TIME))
}

/// One sample of ours for row N2f.
///
/// # Errors
/// Whatever went wrong, in words.
pub fn features_once() -> Result<Sample, String> {
    Ok(Sample::single("Mpps", ours::udp_to_guest(cores::two()?, true, TIME)?))
}

/// Row N2f: what N2 has with rates in both directions, `lock=ip` and a VLAN on both ports, of what it has without.
///
/// # Errors
/// Whatever went wrong, in words.
pub fn n2_features() -> Result<Row, String> {
    let cores = cores::two()?;
    let what = "64-byte UDP, guest -> bridge -> guest, with rates, lock=ip and a VLAN; without them";
    let ours = || ours::udp_to_guest(cores, true, TIME);
    row("N2f", what, Goal::AtLeast(0.85), PAIRS, ours, || ours::udp_to_guest(cores, false, TIME))
}

/// Our side of N2c: beside a busy process.
///
/// # Errors
/// As [`n1_once`].
pub fn contended_once() -> Result<Sample, String> {
    let cores = cores::two()?;
    Ok(Sample::single("Mpps", contended(cores)?))
}

fn contended(cores: [usize; 2]) -> Result<f64, String> {
    let _busy = busy::start(cores)?;
    ours::to_guest(cores, SMALL, TIME)
}

/// Row N2c: N2 with a busy process on the same two cores, beside N2 without it. The kernel would share the cores among the
/// three threads: two thirds.
///
/// # Errors
/// The machine does not come up.
pub fn n2_contended() -> Result<Row, String> {
    let cores = cores::two()?;
    let what =
        "64-byte frames, guest -> bridge -> guest, one other busy process on the two cores; without it";
    row("N2c", what, Goal::AtLeast(0.6), PAIRS, || contended(cores), || ours::to_guest(cores, SMALL, TIME))
}
