//! Random 4 KiB requests at a constant depth through a frontend.

use std::time::{Duration, Instant};

use blkfront::{Completion, Disk, Operation, Request};

/// Bytes a request.
pub(super) const BLOCK: usize = 4096;

/// A small generator of block numbers: what fio calls `--norandommap`.
struct Blocks {
    state: u64,
    count: u64,
}

impl Blocks {
    #[inline]
    fn next(&mut self) -> u64 {
        self.state ^= self.state << 13;
        self.state ^= self.state >> 7;
        self.state ^= self.state << 17;
        ((u128::from(self.state) * u128::from(self.count)) >> 64) as u64
    }
}

/// Keeps `depth` requests in flight for a time and gives operations a second.
///
/// # Panics
/// If the disk fails a request: a figure of errors would be worthless.
pub(super) fn run(disk: &mut Disk, operation: Operation, depth: usize, time: Duration) -> f64 {
    let start = Instant::now();
    let count = run_while(disk, operation, depth, |_| start.elapsed() < time);
    count as f64 / start.elapsed().as_secs_f64()
}

/// Keeps `depth` requests in flight while `goes_on`, which is asked once for as many requests, and given how many are
/// complete. Gives how many were carried out.
///
/// # Panics
/// As [`run`].
pub(super) fn run_while(
    disk: &mut Disk,
    operation: Operation,
    depth: usize,
    mut goes_on: impl FnMut(u64) -> bool,
) -> u64 {
    let mut blocks =
        Blocks { state: 0x9e37_79b9_7f4a_7c15, count: disk.info().expect("a connected disk").sectors / 8 };
    for token in 0..depth as u64 {
        let buffer = Some(disk.buffer(BLOCK).expect("a page"));
        let request = Request { token, operation, sector: blocks.next() * 8, bytes: BLOCK, buffer };
        disk.submit(request).expect("room in the ring");
    }
    let mut done: Vec<Completion> = Vec::with_capacity(depth);
    let mut count = 0u64;
    while goes_on(count) {
        let next_look = count + depth as u64;
        while count < next_look {
            count += disk.wait(&mut done, None).expect("a backend") as u64;
            for completion in done.drain(..) {
                completion.check().expect("the disk serves");
                let request = Request { sector: blocks.next() * 8, ..completion.request };
                disk.submit(request).expect("room in the ring");
            }
        }
    }
    while disk.in_flight() > 0 {
        count += disk.wait(&mut done, None).expect("a backend") as u64;
        done.drain(..).for_each(|completion| completion.check().expect("the disk serves"));
    }
    count
}
