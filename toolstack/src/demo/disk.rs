//! A guest's work on its disk.

use std::time::{Duration, Instant};

use blkfront::{Completion, Disk, Op, Request};
use hdrhistogram::Histogram;
use rand::rngs::SmallRng;
use rand::{RngExt, SeedableRng};
use sha2::{Digest, Sha256};

use super::pattern::{BLOCK, Pattern};
use super::protocol::{DiskPlan, DiskResult, Event, Extent, Latency, Load, Progress};
use crate::error::{Error, Result};

/// Bytes written or read at a time.
const CHUNK: u64 = 1 << 20;
/// Random reads in flight at a time.
const DEPTH: usize = 32;

/// Writes the plan's blocks, flushes, reads them back, and then reads here and there; tells how far it is.
///
/// # Errors
/// The disk's.
pub fn run(disk: &mut Disk, plan: &DiskPlan, tell: &mut dyn FnMut(Event)) -> Result<DiskResult> {
    let work = Work { pattern: Pattern::new(plan.seed), runs: &plan.extents };
    let bytes = work.blocks() * BLOCK as u64;
    see_filesystem(disk)?;
    let begun = Instant::now();
    let sha256 = work.write(disk, tell)?;
    disk.flush().map_err(failed)?;
    let write_mb_s = mb_s(bytes, begun.elapsed());
    let begun = Instant::now();
    let mut mismatches = work.read_back(disk, tell)?;
    let read_mb_s = mb_s(bytes, begun.elapsed());
    let time = Duration::from_millis(plan.millis);
    let (random, wrong) = work.random(disk, DEPTH, time, tell)?;
    mismatches += wrong;
    let (single, wrong) = work.random(disk, 1, time, tell)?;
    mismatches += wrong;
    Ok(DiskResult { bytes, sha256, write_mb_s, read_mb_s, mismatches, random, single })
}

/// Looks at the superblock: what is on the disk is a real filesystem.
fn see_filesystem(disk: &mut Disk) -> Result<()> {
    let mut block = [0; BLOCK];
    disk.read_at(0, &mut block).map_err(failed)?;
    // ext4's magic number, at 0x38 of the superblock, which is at 1024.
    match block[1024 + 0x38..][..2] {
        [0x53, 0xef] => Ok(()),
        _ => Err(Error::other("the disk has no ext4 filesystem on it")),
    }
}

struct Work<'a> {
    pattern: Pattern,
    runs: &'a [Extent],
}

impl Work<'_> {
    fn blocks(&self) -> u64 {
        self.runs.iter().map(|run| run.count).sum()
    }

    /// The stretches of at most a chunk, each with the number of its first block in the file.
    fn chunks(&self) -> impl Iterator<Item = (u64, Extent)> + '_ {
        let most = CHUNK / BLOCK as u64;
        let mut number = 0;
        self.runs.iter().flat_map(move |run| {
            let start = number;
            number += run.count;
            (0..run.count).step_by(most as usize).map(move |at| {
                (start + at, Extent { first: run.first + at, count: most.min(run.count - at) })
            })
        })
    }

    /// Writes all blocks; the hash of what was written.
    fn write(&self, disk: &mut Disk, tell: &mut dyn FnMut(Event)) -> Result<String> {
        let (mut hash, mut done) = (Sha256::new(), 0);
        let mut bytes = vec![0; CHUNK as usize];
        for (number, run) in self.chunks() {
            let bytes = &mut bytes[..run.count as usize * BLOCK];
            for (number, block) in (number..).zip(bytes.chunks_mut(BLOCK)) {
                self.pattern.fill(number, block);
            }
            hash.update(&*bytes);
            disk.write_at(run.first * BLOCK as u64, bytes).map_err(failed)?;
            done += run.count;
            tell(progress("writing", done, self.blocks()));
        }
        Ok(hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect())
    }

    /// Reads all blocks; how many were not as written.
    fn read_back(&self, disk: &mut Disk, tell: &mut dyn FnMut(Event)) -> Result<u64> {
        let (mut wrong, mut done) = (0, 0);
        let mut bytes = vec![0; CHUNK as usize];
        for (number, run) in self.chunks() {
            let bytes = &mut bytes[..run.count as usize * BLOCK];
            disk.read_at(run.first * BLOCK as u64, bytes).map_err(failed)?;
            let blocks = (number..).zip(bytes.chunks(BLOCK));
            wrong += blocks.filter(|(number, block)| !self.pattern.matches(*number, block)).count() as u64;
            done += run.count;
            tell(progress("verifying", done, self.blocks()));
        }
        Ok(wrong)
    }

    /// Reads single blocks here and there for a time, so many at once; compares each.
    fn random(
        &self,
        disk: &mut Disk,
        depth: usize,
        time: Duration,
        tell: &mut dyn FnMut(Event),
    ) -> Result<(Load, u64)> {
        let phase = if depth == 1 { "reading, one at a time" } else { "reading at random" };
        // The sequence of reads is the same in every run.
        let mut random = SmallRng::seed_from_u64(depth as u64);
        let mut flights = Vec::new();
        let mut latency = histogram()?;
        let begun = Instant::now();
        let mut last_told = begun;
        let (mut wrong, mut over, mut done) = (0, 0_u64, Vec::new());
        for token in 0..depth.min(disk.depth()) as u64 {
            let buffer = disk.buffer(BLOCK).map_err(failed)?;
            flights.push(Flight::default());
            self.ask(disk, token, Some(buffer), &mut flights, &mut random)?;
        }
        while disk.in_flight() > 0 {
            disk.wait(&mut done, None).map_err(failed)?;
            let now = Instant::now();
            let more = now - begun < time;
            for completion in done.drain(..) {
                let token = completion.request.token;
                let Flight { number, asked } = flights[token as usize];
                latency.saturating_record((now - asked).as_nanos() as u64);
                over += 1;
                wrong += u64::from(!self.is_right(&completion, number)?);
                if more {
                    self.ask(disk, token, completion.request.buffer, &mut flights, &mut random)?;
                }
            }
            if now - last_told > Duration::from_millis(50) {
                last_told = now;
                tell(progress(phase, (now - begun).min(time).as_millis() as u64, time.as_millis() as u64));
            }
        }
        let iops = over as f64 / begun.elapsed().as_secs_f64();
        Ok((Load { iops, latency: percentiles(&latency) }, wrong))
    }

    fn ask(
        &self,
        disk: &mut Disk,
        token: u64,
        buffer: Option<blkfront::Buffer>,
        flights: &mut [Flight],
        random: &mut SmallRng,
    ) -> Result<()> {
        let number = random.random_range(0..self.blocks());
        flights[token as usize] = Flight { number, asked: Instant::now() };
        let sector = self.place(number) * (BLOCK as u64 / 512);
        let request = Request { token, op: Op::Read, sector, bytes: BLOCK, buffer };
        disk.submit(request).map_err(|_| Error::other("the disk takes no request"))
    }

    /// Where on the disk a block of the file is.
    fn place(&self, number: u64) -> u64 {
        let mut left = number;
        for run in self.runs {
            if left < run.count {
                return run.first + left;
            }
            left -= run.count;
        }
        0
    }

    fn is_right(&self, completion: &Completion, number: u64) -> Result<bool> {
        completion.check().map_err(failed)?;
        let mut block = [0; BLOCK];
        if let Some(buffer) = &completion.request.buffer {
            buffer.copy_to(&mut block);
        }
        Ok(self.pattern.matches(number, &block))
    }
}

/// A read in flight: which block, and since when.
#[derive(Clone, Copy)]
struct Flight {
    number: u64,
    asked: Instant,
}

impl Default for Flight {
    fn default() -> Flight {
        Flight { number: 0, asked: Instant::now() }
    }
}

fn progress(phase: &str, done: u64, total: u64) -> Event {
    Event::Progress(Progress { phase: phase.into(), done, total })
}

fn failed(error: blkfront::Error) -> Error {
    Error::Other(format!("disk: {error}"))
}

fn mb_s(bytes: u64, time: Duration) -> f64 {
    bytes as f64 / 1e6 / time.as_secs_f64().max(1e-9)
}

/// Nanoseconds up to a minute, with three digits.
pub(super) fn histogram() -> Result<Histogram<u64>> {
    Histogram::new_with_bounds(1, 60_000_000_000, 3).map_err(|e| Error::Other(e.to_string()))
}

/// What people look at, in microseconds.
pub(super) fn percentiles(nanos: &Histogram<u64>) -> Latency {
    let us = |nanos: u64| nanos as f64 / 1e3;
    Latency {
        p50_us: us(nanos.value_at_quantile(0.5)),
        p99_us: us(nanos.value_at_quantile(0.99)),
        p99_9_us: us(nanos.value_at_quantile(0.999)),
        max_us: us(nanos.max()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_are_in_microseconds() {
        let mut nanos = histogram().unwrap();
        (1..=1000_u64).for_each(|us| nanos.saturating_record(us * 1000));
        let Latency { p50_us, p99_us, max_us, .. } = percentiles(&nanos);
        assert!(
            (p50_us - 500.0).abs() < 2.0 && (p99_us - 990.0).abs() < 2.0 && (max_us - 1000.0).abs() < 2.0
        );
    }

    #[test]
    fn chunks_cover_every_block_once_in_the_files_order() {
        let runs = [Extent { first: 1000, count: 300 }, Extent { first: 10, count: 1 }];
        let work = Work { pattern: Pattern::new(0), runs: &runs };
        let mut places = Vec::new();
        for (number, run) in work.chunks() {
            assert_eq!(number as usize, places.len());
            assert!(run.count * BLOCK as u64 <= CHUNK);
            places.extend(run.first..run.first + run.count);
        }
        let expected: Vec<u64> = (1000..1300).chain([10]).collect();
        assert_eq!(places, expected);
        assert!((0..301).map(|n| work.place(n)).eq(expected));
    }
}
