//! Row U1: how long the I/O of guests stalls when dom0 is replaced, and when it is killed and started again.
//!
//! A guest's disk and a stream of datagrams between two guests are watched over many rounds, each of which ends dom0's process
//! and starts the next. A round's figure is the longest stall of each.

mod disk;
mod stalls;
mod vif;

use crate::namespace::Ends;
use crate::process::wait_until;
use crate::row::{Row, median};
use crate::sample::Sample;
use crate::xpv::Machine;
use disk::DiskWatch;
use nix::sys::signal::Signal;
use stalls::Stalls;
use std::path::Path;
use vif::VifWatch;

/// The row's name.
pub const NAME: &str = "U1";
/// Rounds of each kind in a row; `XPV_BENCH_ROUNDS` says another number. The goal is that of 1,000.
const ROUNDS: usize = 100;
/// Rounds of each kind in a sample.
const ROUNDS_OF_A_SAMPLE: usize = 10;
/// I/O is steady after this many completions.
const STEADY: u64 = 20;

/// How a dom0 ends.
#[derive(Clone, Copy, Debug)]
struct Outage {
    signal: Signal,
    what: &'static str,
    /// Longest stall in milliseconds that the 99th percentile may have.
    most: f64,
}

const OUTAGES: [Outage; 2] = [
    Outage { signal: Signal::SIGTERM, what: "dom0 replaced (SIGTERM)", most: 20.0 },
    Outage { signal: Signal::SIGKILL, what: "dom0 killed (SIGKILL) and restarted", most: 100.0 },
];
const DEVICES: [&str; 2] = ["disk, 4 KiB reads", "vif, 1,000 datagrams a second"];

/// The stalls in milliseconds of each device, by [`DEVICES`], in each round of one kind of outage.
type Figures = [Vec<f64>; 2];

/// Row U1: a line for each device and outage.
///
/// # Errors
/// The machine does not come up, or is not served again.
pub fn rows(xpv: &Path) -> Result<Vec<Row>, String> {
    let rounds = match std::env::var("XPV_BENCH_ROUNDS") {
        Ok(text) => text.parse().map_err(|e| format!("XPV_BENCH_ROUNDS={text}: {e}"))?,
        Err(_) => ROUNDS,
    };
    let figures = measure(xpv, rounds)?;
    let line = |outage: &Outage, device, figures: &[f64]| {
        let what = format!(
            "p99, {device}; {}: median {:.1}, longest {:.1} of {rounds} rounds",
            outage.what,
            median(figures.iter().copied()),
            figures.iter().copied().fold(0.0, f64::max),
        );
        Row::bounded(NAME, what, "ms", outage.most, percentile_99(figures))
    };
    let lines = OUTAGES.iter().zip(&figures).flat_map(|(outage, of_devices)| {
        DEVICES.iter().zip(of_devices).map(move |(device, figures)| line(outage, device, figures))
    });
    Ok(lines.collect())
}

/// The medians of a few rounds of that program.
///
/// # Errors
/// As [`rows`].
pub fn once(xpv: &Path) -> Result<Sample, String> {
    let figures = measure(xpv, ROUNDS_OF_A_SAMPLE)?;
    let cases = OUTAGES.iter().zip(figures).flat_map(|(outage, of_devices)| {
        let case = |(device, figures)| (format!("{device}; {}", outage.what), median(figures));
        DEVICES.iter().zip(of_devices).map(case).collect::<Vec<_>>()
    });
    Ok(Sample::new("ms", cases))
}

fn percentile_99(figures: &[f64]) -> f64 {
    let mut figures = figures.to_vec();
    figures.sort_by(f64::total_cmp);
    figures[(figures.len() - 1) * 99 / 100]
}

/// Makes `rounds` rounds of each outage, alternately.
fn measure(xpv: &Path, rounds: usize) -> Result<[Figures; 2], String> {
    if rounds == 0 {
        return Err("no rounds".into());
    }
    let mut machine = Machine::start(xpv)?;
    let ends = Ends::new()?;
    let disk = create_guests(&machine, &ends)?;
    let vif = VifWatch::start(&ends)?;
    let watched = [disk.stalls(), vif.stalls()];
    let mut figures: [Figures; 2] = Default::default();
    for round in 0..rounds {
        for (outage, figures) in OUTAGES.iter().zip(&mut figures) {
            let stalls = interrupt(&mut machine, watched, outage.signal).map_err(|why| {
                format!("{}, round {round}: {why}; the log ends: {}", outage.what, machine.log())
            })?;
            figures.iter_mut().zip(stalls).for_each(|(figures, stall)| figures.push(stall));
        }
    }
    Ok(figures)
}

/// Two guests with a vif each, of which the first has a disk too, which is watched from now on.
fn create_guests(machine: &Machine, ends: &Ends) -> Result<DiskWatch, String> {
    let image = machine.path("disk.img");
    let made = std::fs::File::create(&image).and_then(|file| file.set_len(disk::IMAGE));
    made.map_err(|e| format!("{}: {e}", image.display()))?;
    let disk = format!("disk = ['vdev=xvda,target={}']", image.display());
    let vif = |number: u8| format!("vif = ['mac=00:16:3e:00:00:{number:02x}']");
    machine.create("alice", &format!("{}\n{disk}", vif(1)), &ends.client.path())?;
    machine.create("bob", &vif(2), &ends.server.path())?;
    DiskWatch::start(&machine.nbd("alice", "xvda"))
}

/// One round: the stalls in milliseconds.
fn interrupt(machine: &mut Machine, watched: [&Stalls; 2], signal: Signal) -> Result<[f64; 2], String> {
    let steady = |when: &str| {
        for (stalls, device) in watched.iter().zip(DEVICES) {
            wait_until(&format!("{device}: served {when}"), || stalls.count() >= STEADY)
                .map_err(|why| stalls.failure().unwrap_or(why))?;
        }
        Ok::<(), String>(())
    };
    steady("before the outage")?;
    watched.iter().for_each(|stalls| stalls.begin());
    machine.restart_dom0(signal)?;
    // What completes from here on, the next dom0 has served.
    watched.iter().for_each(|stalls| stalls.count_anew());
    steady("after the outage")?;
    Ok(watched.map(|stalls| stalls.longest().as_secs_f64() * 1e3))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentile_99_of_a_hundred_is_the_second_longest() {
        let figures: Vec<f64> = (1..=100).rev().map(f64::from).collect();
        assert_eq!(percentile_99(&figures), 99.0);
        assert_eq!(percentile_99(&[7.0]), 7.0);
    }
}
