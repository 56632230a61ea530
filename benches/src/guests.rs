//! Row S1: many guests on one dom0, each with a disk and an interface: how long one more device takes to connect, what memory a
//! guest costs dom0, and how fast a hundred of them read beside one that reads alone.
//!
//! Hypervisor and dom0 are processes of `xpv`. All guests are domains of this process, which drives their frontends.

mod attach;
mod memory;
mod population;
mod reads;

use crate::row::{Goal, Row, median};
use crate::sample::Sample;
use population::Population;
use std::path::Path;

/// The row's name.
pub const NAME: &str = "S1";
/// Guests of the row; `XPV_BENCH_GUESTS` says another number.
const GUESTS: usize = 1000;
/// Guests of a sample.
const GUESTS_OF_A_SAMPLE: usize = 128;
/// Attaches of each kind that are measured.
const ATTACHES: usize = 300;
/// The most milliseconds that the 99th percentile of attaches may have.
const MOST_MS: f64 = 5.0;
/// The most KiB of dom0's that an idle guest may have.
const MOST_KIB: f64 = 256.0;
/// The least that many busy guests read, as a share of what one reads.
const LEAST_SHARE: f64 = 0.925;

/// What was measured of a population.
struct Figures {
    guests: usize,
    /// Milliseconds of each attach, by kind: disks, interfaces.
    attaches: [Vec<f64>; 2],
    memory: memory::PerGuest,
    /// Thousands of reads a second, of many guests and of one.
    reads: Vec<(f64, f64)>,
}

const KINDS: [&str; 2] = ["a vbd", "a vif"];

/// Row S1: a line for the attaches of each kind, one for memory, one for reads.
///
/// # Errors
/// The machine does not come up, or its processes may not have as many descriptors.
pub fn rows(xpv: &Path) -> Result<Vec<Row>, String> {
    let guests = match std::env::var("XPV_BENCH_GUESTS") {
        Ok(text) => text.parse().map_err(|e| format!("XPV_BENCH_GUESTS={text}: {e}"))?,
        Err(_) => GUESTS,
    };
    let Figures { guests, attaches, memory, reads } = measure(xpv, guests, ATTACHES, reads::PAIRS)?;
    let attach = |(kind, times): (&str, &Vec<f64>)| {
        let middle = median(times.iter().copied());
        let what =
            format!("p99 of {ATTACHES} attaches of {kind}, {guests} guests present: median {middle:.2}");
        Row::bounded(NAME, what, "ms", MOST_MS, percentile_99(times))
    };
    let mut rows: Vec<Row> = KINDS.into_iter().zip(&attaches).map(attach).collect();
    let what =
        format!("dom0's memory without pages that guests granted, a guest of {guests}, idle: {memory}");
    rows.push(Row::bounded(NAME, what, "KiB", MOST_KIB, memory.kib()));
    rows.push(Row::new(NAME, reads::what(), "k IOPS", Goal::AtLeast(LEAST_SHARE), &reads));
    Ok(rows)
}

/// The figures of a smaller population.
///
/// # Errors
/// As [`rows`].
pub fn once(xpv: &Path) -> Result<Sample, String> {
    let figures = measure(xpv, GUESTS_OF_A_SAMPLE, ATTACHES / 3, 1)?;
    let attaches = KINDS.iter().zip(&figures.attaches);
    let attaches = attaches.map(|(kind, times)| (format!("attach of {kind}, ms"), percentile_99(times)));
    let memory = ("memory a guest, KiB".to_owned(), figures.memory.kib());
    Ok(Sample::new("", attaches.chain([memory])))
}

fn measure(xpv: &Path, guests: usize, attaches: usize, pairs: usize) -> Result<Figures, String> {
    if guests < reads::BUSY {
        return Err(format!("{guests} guests, expected {} at least, as so many are to read", reads::BUSY));
    }
    let mut population = Population::start(xpv)?;
    // One is there before memory is first read: what all guests share is not counted.
    population.grow(1)?;
    let first = memory::of(population.dom0())?;
    population.grow(guests)?;
    let memory = memory::PerGuest::new(first, memory::of(population.dom0())?, guests - 1);
    // One guest after the other: dom0 reads the devices of one only so often.
    let numbers = || (0..guests).cycle().take(attaches);
    let attaches = [
        numbers().map(|number| attach::disk(&mut population, number)).collect::<Result<_, _>>()?,
        numbers().map(|number| attach::interface(&mut population, number)).collect::<Result<_, _>>()?,
    ];
    let reads = reads::pairs(&mut population, pairs)?;
    Ok(Figures { guests, attaches, memory, reads })
}

fn percentile_99(times: &[f64]) -> f64 {
    let mut times = times.to_vec();
    times.sort_by(f64::total_cmp);
    times[(times.len() - 1) * 99 / 100]
}
