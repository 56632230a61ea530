//! Rows R1 to R3: the ring beside Xen's own C macros, and beside virtio.
//!
//! Every row is measured with requests of one segment and of eleven, and the stricter ratio is reported.

pub mod ours;
pub mod peer;
pub mod virtio;

use crate::cores;
use crate::row::{Goal, Row, interleave};
use crate::sample::{Sample, settled};
use peer::Peer;
use ring_abi::testing::Pages;
use std::sync::Barrier;
use std::time::Instant;

const BATCH: u32 = 32;
const HALF_RING: u32 = 16;
const PAIRS: usize = 301;
const BATCHES: u32 = 2_000;
const TWO_THREAD_PAIRS: usize = 41;
const TWO_THREAD_TRIES: usize = 7;
const TWO_THREAD_REQUESTS: u64 = 30_000;
/// What rows R1 and R2 are measured with, each for itself.
const SEGMENTS: [u8; 2] = [1, 11];

/// Nanoseconds for each of the requests that `run` says it did.
fn nanoseconds(run: impl FnOnce() -> u64) -> f64 {
    let start = Instant::now();
    let done = run();
    start.elapsed().as_nanos() as f64 / done as f64
}

/// The row of `rows` that is furthest from its goal.
fn stricter(rows: [Row; 2], goal: Goal) -> Row {
    let [a, b] = rows;
    let a_is_worse = match goal {
        Goal::AtLeast(_) | Goal::Faster(_) => a.ratio < b.ratio,
        _ => a.ratio > b.ratio,
    };
    let (worse, better) = if a_is_worse { (a, b) } else { (b, a) };
    let peer = better.peer.unwrap_or(f64::NAN);
    let what = format!("{} (stricter; the other: {:.2} to {:.2})", worse.what, better.ours, peer);
    Row { what, ..worse }
}

fn segments_text(segments: u8) -> &'static str {
    if segments == 1 { "1 segment" } else { "11 segments" }
}

/// Our figures for each number of segments.
fn sample(unit: &str, mut ours: impl FnMut(u8) -> f64) -> Sample {
    Sample::new(unit, SEGMENTS.map(|segments| (segments_text(segments).to_owned(), ours(segments))))
}

/// Nanoseconds for a request of ours, both halves on one thread.
fn one_thread(page: &Pages, segments: u8) -> f64 {
    nanoseconds(|| ours::one_thread(page, BATCHES, BATCH, segments))
}

/// Our side of R1.
pub fn r1_once() -> Result<Sample, String> {
    let page = Pages::new(1);
    Ok(sample("ns", |segments| settled(PAIRS, || one_thread(&page, segments))))
}

/// R1: both halves on one thread.
pub fn r1() -> Result<Row, String> {
    let peer = Peer::build()?;
    let page = Pages::new(1);
    let goal = Goal::AtMost(1.0);
    let row = |segments| {
        let ours = || one_thread(&page, segments);
        let theirs = || nanoseconds(|| peer.one_thread(&page, BATCHES, BATCH, segments));
        let what = format!("ring, one thread, {}, beside Xen's C macros", segments_text(segments));
        Row::new("R1", what, "ns", goal, &interleave(PAIRS, ours, theirs))
    };
    Ok(stricter(SEGMENTS.map(row), goal))
}

/// Millions of requests a second, with each half on a processor of its own. The clock runs in the front half, once both
/// are there.
fn rate(cores: [usize; 2], front: impl FnOnce() + Send, back: impl FnOnce() + Send) -> f64 {
    let both = Barrier::new(2);
    let elapsed = std::thread::scope(|scope| {
        let front = scope.spawn(|| {
            cores::pin(cores[0]);
            both.wait();
            let start = Instant::now();
            front();
            start.elapsed()
        });
        scope.spawn(|| {
            cores::pin(cores[1]);
            both.wait();
            back();
        });
        front.join().expect("no panic")
    });
    TWO_THREAD_REQUESTS as f64 * 1e3 / elapsed.as_nanos() as f64
}

/// The best of some short runs: one that another program interrupts says nothing of either ring.
fn best(mut run: impl FnMut() -> f64) -> f64 {
    (0..TWO_THREAD_TRIES).map(|_| run()).fold(0.0, f64::max)
}

/// Our rate with each half on a processor of its own.
fn two_threads(page: &Pages, cores: [usize; 2], segments: u8) -> f64 {
    let front = ours::init(page);
    rate(
        cores,
        move || ours::front(front, TWO_THREAD_REQUESTS, HALF_RING, segments),
        || ours::back(page, TWO_THREAD_REQUESTS),
    )
}

/// Our side of R2.
pub fn r2_once() -> Result<Sample, String> {
    let page = Pages::new(1);
    let cores = cores::two()?;
    let ours = |segments| settled(TWO_THREAD_PAIRS, || best(|| two_threads(&page, cores, segments)));
    Ok(sample("M/s", ours))
}

/// R2: each half on its own core, polling.
pub fn r2() -> Result<Row, String> {
    let peer = Peer::build()?;
    let page = Pages::new(1);
    let goal = Goal::AtLeast(1.0);
    let cores = cores::two()?;
    let row = |segments| {
        let ours = || two_threads(&page, cores, segments);
        let theirs = || {
            peer.init(&page);
            rate(
                cores,
                || peer.front(&page, TWO_THREAD_REQUESTS, HALF_RING, segments),
                || peer.back(&page, TWO_THREAD_REQUESTS),
            )
        };
        let what = format!("ring, two threads, {}, beside Xen's C macros", segments_text(segments));
        Row::new("R2", what, "M/s", goal, &interleave(TWO_THREAD_PAIRS, || best(ours), || best(&theirs)))
    };
    Ok(stricter(SEGMENTS.map(row), goal))
}

/// Our side of R3.
pub fn r3_once() -> Result<Sample, String> {
    let page = Pages::new(1);
    Ok(Sample::single("ns", settled(PAIRS, || one_thread(&page, 1))))
}

/// R3: a block request of one segment beside a chain of three descriptors.
pub fn r3() -> Result<Row, String> {
    let page = Pages::new(1);
    let goal = Goal::Faster(6.0);
    let mut virtqueue = virtio::Virtqueue::new();
    let ours = || one_thread(&page, 1);
    let theirs = || nanoseconds(|| virtqueue.one_thread(BATCHES / 4, BATCH as u16));
    let what = "ring, one thread, 1 segment, beside virtio-queue, 3 descriptors";
    Ok(Row::new("R3", what, "ns", goal, &interleave(PAIRS, ours, theirs)))
}
