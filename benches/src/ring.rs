//! Rows R1 to R3: the ring beside Xen's own C macros, and beside virtio.
//!
//! Every row is measured with requests of one segment and of eleven, and the stricter ratio is reported.

pub mod ours;
pub mod peer;
pub mod virtio;

use crate::row::{Goal, Row, interleave};
use nix::sched::{CpuSet, sched_getaffinity, sched_setaffinity};
use nix::unistd::Pid;
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
        Goal::AtMost(_) => a.ratio > b.ratio,
        Goal::AtLeast(_) | Goal::Faster(_) => a.ratio < b.ratio,
    };
    let (worse, better) = if a_is_worse { (a, b) } else { (b, a) };
    let what = format!("{} (stricter; the other: {:.2} to {:.2})", worse.what, better.ours, better.peer);
    Row { what, ..worse }
}

fn segments_text(segments: u8) -> &'static str {
    if segments == 1 { "1 segment" } else { "11 segments" }
}

/// R1: both halves on one thread.
pub fn r1() -> Result<Row, String> {
    let (peer, page, goal) = (Peer::build()?, Pages::new(1), Goal::AtMost(1.0));
    let row = |segments| {
        let ours = || nanoseconds(|| ours::one_thread(&page, BATCHES, BATCH, segments));
        let theirs = || nanoseconds(|| peer.one_thread(&page, BATCHES, BATCH, segments));
        let what = format!("ring, one thread, {}, beside Xen's C macros", segments_text(segments));
        Row::new("R1", what, "ns", goal, &interleave(PAIRS, ours, theirs))
    };
    Ok(stricter([row(1), row(11)], goal))
}

/// The first two processors that this process may use.
fn two_cores() -> Result<[usize; 2], String> {
    let allowed = sched_getaffinity(Pid::from_raw(0)).map_err(|e| format!("sched_getaffinity: {e}"))?;
    let mut cores = (0..CpuSet::count()).filter(|&c| allowed.is_set(c).unwrap_or(false));
    match (cores.next(), cores.next()) {
        (Some(a), Some(b)) => Ok([a, b]),
        _ => Err("two processors are needed".into()),
    }
}

/// Binds the calling thread to one processor.
fn pin(core: usize) {
    let mut set = CpuSet::new();
    set.set(core).and_then(|()| sched_setaffinity(Pid::from_raw(0), &set)).expect("a processor that is ours");
}

/// Millions of requests a second, with each half on a processor of its own. The clock runs in the front half, once both
/// are there.
fn rate(cores: [usize; 2], front: impl FnOnce() + Send, back: impl FnOnce() + Send) -> f64 {
    let both = Barrier::new(2);
    let elapsed = std::thread::scope(|scope| {
        let front = scope.spawn(|| {
            pin(cores[0]);
            both.wait();
            let start = Instant::now();
            front();
            start.elapsed()
        });
        scope.spawn(|| {
            pin(cores[1]);
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

/// R2: each half on its own core, polling.
pub fn r2() -> Result<Row, String> {
    let (peer, page, goal, cores) = (Peer::build()?, Pages::new(1), Goal::AtLeast(1.0), two_cores()?);
    let row = |segments| {
        let ours = || {
            let front = ours::init(&page);
            rate(
                cores,
                move || ours::front(front, TWO_THREAD_REQUESTS, HALF_RING, segments),
                || ours::back(&page, TWO_THREAD_REQUESTS),
            )
        };
        let theirs = || {
            peer.init(&page);
            rate(
                cores,
                || peer.front(&page, TWO_THREAD_REQUESTS, HALF_RING, segments),
                || peer.back(&page, TWO_THREAD_REQUESTS),
            )
        };
        let what = format!("ring, two threads, {}, beside Xen's C macros", segments_text(segments));
        Row::new("R2", what, "M/s", goal, &interleave(TWO_THREAD_PAIRS, || best(&ours), || best(&theirs)))
    };
    Ok(stricter([row(1), row(11)], goal))
}

/// R3: a block request of one segment beside a chain of three descriptors.
pub fn r3() -> Result<Row, String> {
    let (page, goal) = (Pages::new(1), Goal::Faster(6.0));
    let mut virtqueue = virtio::Virtqueue::new();
    let ours = || nanoseconds(|| ours::one_thread(&page, BATCHES, BATCH, 1));
    let theirs = || nanoseconds(|| virtqueue.one_thread(BATCHES / 4, BATCH as u16));
    let what = "ring, one thread, 1 segment, beside virtio-queue, 3 descriptors";
    Ok(Row::new("R3", what, "ns", goal, &interleave(PAIRS, ours, theirs)))
}
