//! The disk workload of a guest of the demo.

use std::time::{Duration, Instant};

use blkfront::{Completion, Disk, Operation, Request, split};
use hdrhistogram::Histogram;
use rand::rngs::SmallRng;
use rand::{RngExt, SeedableRng};
use sha2::{Digest, Sha256};

use super::pattern::{BLOCK, Pattern};
use super::protocol::{DiskPlan, DiskResult, Event, Extent, Latency, Load, Progress};
use crate::error::{Error, Result, chain};

/// Bytes of a sequential write or read.
const CHUNK: usize = 1 << 20;
/// Random reads in flight at a time.
const DEPTH: usize = 32;
/// The shortest time between two progress events.
const PROGRESS_INTERVAL: Duration = Duration::from_millis(50);

/// Writes the plan's extents, flushes, reads them back, and then reads blocks at random. Progress is given to `report`.
///
/// # Errors
/// An operation of the disk failed, or the disk has no ext4 filesystem.
pub fn run(disk: &mut Disk, plan: &DiskPlan, report: &mut dyn FnMut(Event)) -> Result<DiskResult> {
    let workload = Workload { pattern: Pattern::new(plan.seed), extents: &plan.extents };
    let bytes = workload.blocks() * BLOCK as u64;
    check_filesystem(disk)?;
    let started = Instant::now();
    let sha256 = workload.write(disk, report)?;
    disk.flush().map_err(failed)?;
    let write_mb_s = mb_s(bytes, started.elapsed());
    let started = Instant::now();
    let mut mismatches = workload.read_back(disk, report)?;
    let read_mb_s = mb_s(bytes, started.elapsed());
    let time = Duration::from_millis(plan.millis);
    let (random, wrong) = workload.read_at_random(disk, DEPTH, time, report)?;
    mismatches += wrong;
    let (single, wrong) = workload.read_at_random(disk, 1, time, report)?;
    mismatches += wrong;
    Ok(DiskResult { bytes, sha256, write_mb_s, read_mb_s, mismatches, random, single })
}

/// Checks that the disk has an ext4 superblock.
fn check_filesystem(disk: &mut Disk) -> Result<()> {
    let mut block = [0; BLOCK];
    disk.read_at(0, &mut block).map_err(failed)?;
    // ext4's magic number, at offset 0x38 of the superblock, which is at 1024.
    match block[1024 + 0x38..][..2] {
        [0x53, 0xef] => Ok(()),
        _ => Err(Error::other("the disk has no ext4 filesystem on it")),
    }
}

struct Workload<'a> {
    pattern: Pattern,
    extents: &'a [Extent],
}

impl Workload<'_> {
    /// The number of blocks of the file.
    fn blocks(&self) -> u64 {
        self.extents.iter().map(|extent| extent.count).sum()
    }

    /// Splits the extents into pieces of at most [`CHUNK`], each with the number of its first block in the file.
    fn chunks(&self) -> impl Iterator<Item = (u64, Extent)> + '_ {
        let mut number = 0;
        self.extents.iter().flat_map(move |extent| {
            let start = number;
            number += extent.count;
            split(extent.first * BLOCK as u64, extent.count as usize * BLOCK, CHUNK).map(move |chunk| {
                let number = start + (chunk.bytes.start / BLOCK) as u64;
                let count = (chunk.bytes.len() / BLOCK) as u64;
                (number, Extent { first: chunk.offset / BLOCK as u64, count })
            })
        })
    }

    /// Writes all blocks; returns the SHA-256 of the data.
    fn write(&self, disk: &mut Disk, report: &mut dyn FnMut(Event)) -> Result<String> {
        let mut hash = Sha256::new();
        let mut done = 0;
        let mut bytes = vec![0; CHUNK];
        for (number, extent) in self.chunks() {
            let bytes = &mut bytes[..extent.count as usize * BLOCK];
            for (number, block) in (number..).zip(bytes.chunks_mut(BLOCK)) {
                self.pattern.fill(number, block);
            }
            hash.update(&*bytes);
            disk.write_at(extent.first * BLOCK as u64, bytes).map_err(failed)?;
            done += extent.count;
            report(progress("writing", done, self.blocks()));
        }
        Ok(hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect())
    }

    /// Reads all blocks; returns how many differ from what was written.
    fn read_back(&self, disk: &mut Disk, report: &mut dyn FnMut(Event)) -> Result<u64> {
        let mut wrong = 0;
        let mut done = 0;
        let mut bytes = vec![0; CHUNK];
        for (number, extent) in self.chunks() {
            let bytes = &mut bytes[..extent.count as usize * BLOCK];
            disk.read_at(extent.first * BLOCK as u64, bytes).map_err(failed)?;
            let blocks = (number..).zip(bytes.chunks(BLOCK));
            wrong += blocks.filter(|(number, block)| !self.pattern.matches(*number, block)).count() as u64;
            done += extent.count;
            report(progress("verifying", done, self.blocks()));
        }
        Ok(wrong)
    }

    /// Reads single blocks at random for a time, `depth` at once, and compares each; returns how many differ too.
    fn read_at_random(
        &self,
        disk: &mut Disk,
        depth: usize,
        time: Duration,
        report: &mut dyn FnMut(Event),
    ) -> Result<(Load, u64)> {
        let phase = if depth == 1 { "reading, one at a time" } else { "reading at random" };
        // The seed is fixed: every run reads the same sequence.
        let mut random = SmallRng::seed_from_u64(depth as u64);
        let mut in_flight = Vec::new();
        let mut latency = histogram()?;
        let started = Instant::now();
        let mut last_report = started;
        let mut wrong = 0;
        let mut completed = 0_u64;
        let mut completions = Vec::new();
        for token in 0..depth.min(disk.depth()) as u64 {
            let buffer = disk.buffer(BLOCK).map_err(failed)?;
            in_flight.push(InFlightRead { number: 0, submitted: started });
            self.submit(disk, token, Some(buffer), &mut in_flight, &mut random)?;
        }
        while disk.in_flight() > 0 {
            disk.wait(&mut completions, None).map_err(failed)?;
            let now = Instant::now();
            let more = now - started < time;
            for completion in completions.drain(..) {
                let token = completion.request.token;
                let InFlightRead { number, submitted } = in_flight[token as usize];
                latency.saturating_record((now - submitted).as_nanos() as u64);
                completed += 1;
                wrong += u64::from(!self.is_right(&completion, number)?);
                if more {
                    self.submit(disk, token, completion.request.buffer, &mut in_flight, &mut random)?;
                }
            }
            if now - last_report > PROGRESS_INTERVAL {
                last_report = now;
                let elapsed = (now - started).min(time);
                report(progress(phase, elapsed.as_millis() as u64, time.as_millis() as u64));
            }
        }
        let iops = completed as f64 / started.elapsed().as_secs_f64();
        Ok((Load { iops, latency: percentiles(&latency) }, wrong))
    }

    /// Submits a read of a random block.
    fn submit(
        &self,
        disk: &mut Disk,
        token: u64,
        buffer: Option<blkfront::Buffer>,
        in_flight: &mut [InFlightRead],
        random: &mut SmallRng,
    ) -> Result<()> {
        let number = random.random_range(0..self.blocks());
        in_flight[token as usize] = InFlightRead { number, submitted: Instant::now() };
        let sector = self.disk_block(number) * (BLOCK as u64 / 512);
        let request = Request { token, operation: Operation::Read, sector, bytes: BLOCK, buffer };
        disk.submit(request).map_err(|_| Error::other("the disk takes no request"))
    }

    /// Maps a block of the file to its block on the disk.
    fn disk_block(&self, number: u64) -> u64 {
        let mut rest = number;
        for extent in self.extents {
            if rest < extent.count {
                return extent.first + rest;
            }
            rest -= extent.count;
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

/// A read in flight: the number of its block in the file, and when it was submitted.
#[derive(Clone, Copy)]
struct InFlightRead {
    number: u64,
    submitted: Instant,
}

fn progress(phase: &str, done: u64, total: u64) -> Event {
    Event::Progress(Progress { phase: phase.into(), done, total })
}

fn failed(error: blkfront::Error) -> Error {
    Error::Other(format!("disk: {}", chain(&error)))
}

fn mb_s(bytes: u64, time: Duration) -> f64 {
    bytes as f64 / 1e6 / time.as_secs_f64().max(1e-9)
}

/// Creates a histogram of nanoseconds up to a minute, with three significant digits.
pub(super) fn histogram() -> Result<Histogram<u64>> {
    Histogram::new_with_bounds(1, 60_000_000_000, 3).map_err(|e| Error::Other(e.to_string()))
}

/// Returns the percentiles of a histogram of nanoseconds, in microseconds.
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
    fn chunks_cover_every_block_once_in_file_order() {
        let extents = [Extent { first: 1000, count: 300 }, Extent { first: 10, count: 1 }];
        let workload = Workload { pattern: Pattern::new(0), extents: &extents };
        let mut blocks = Vec::new();
        for (number, extent) in workload.chunks() {
            assert_eq!(number as usize, blocks.len());
            assert!(extent.count as usize * BLOCK <= CHUNK);
            blocks.extend(extent.first..extent.first + extent.count);
        }
        let expected: Vec<u64> = (1000..1300).chain([10]).collect();
        assert_eq!(blocks, expected);
        assert!((0..301).map(|n| workload.disk_block(n)).eq(expected));
    }
}
