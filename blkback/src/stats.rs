//! A device's counters, without locks: written by the device's own thread, read by any other.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

/// Buckets of the latency histogram: up to 1 us, 2 us, 4 us ... and the rest.
pub const BUCKETS: usize = 24;

/// Counters of one kind of operation.
#[derive(Debug, Default)]
pub struct OpCounters {
    ops: AtomicU64,
    bytes: AtomicU64,
    errors: AtomicU64,
}

impl OpCounters {
    /// Operations completed, failed ones included.
    pub fn ops(&self) -> u64 {
        self.ops.load(Relaxed)
    }

    /// Bytes moved by operations that succeeded.
    pub fn bytes(&self) -> u64 {
        self.bytes.load(Relaxed)
    }

    /// Operations that failed.
    pub fn errors(&self) -> u64 {
        self.errors.load(Relaxed)
    }

    #[inline]
    pub(crate) fn add(&self, bytes: usize, ok: bool) {
        bump(&self.ops, 1);
        if ok {
            bump(&self.bytes, bytes as u64);
        } else {
            bump(&self.errors, 1);
        }
    }
}

/// One device's counters, from the time it was found.
#[derive(Debug, Default)]
pub struct Stats {
    /// Reads.
    pub read: OpCounters,
    /// Writes.
    pub write: OpCounters,
    /// Flushes.
    pub flush: OpCounters,
    refused: AtomicU64,
    depth: AtomicU64,
    wakeups: AtomicU64,
    notifies: AtomicU64,
    latency: [AtomicU64; BUCKETS],
}

impl Stats {
    /// Requests answered without reaching the disk: malformed, or not supported.
    pub fn refused(&self) -> u64 {
        self.refused.load(Relaxed)
    }

    /// Requests in flight, as of the last completion.
    pub fn depth(&self) -> u64 {
        self.depth.load(Relaxed)
    }

    /// How often the thread was woken.
    pub fn wakeups(&self) -> u64 {
        self.wakeups.load(Relaxed)
    }

    /// Events sent to the frontend.
    pub fn notifies(&self) -> u64 {
        self.notifies.load(Relaxed)
    }

    /// Operations by latency, from the request's being taken to its completion: bucket `n` counts those of less
    /// than 2^n microseconds that are in no lower bucket; the last bucket counts the rest.
    pub fn latency(&self) -> [u64; BUCKETS] {
        std::array::from_fn(|n| self.latency[n].load(Relaxed))
    }

    #[inline]
    pub(crate) fn record_latency(&self, latency: Duration) {
        let microseconds = latency.as_micros() as u64;
        let bucket = (u64::BITS - microseconds.leading_zeros()) as usize;
        bump(&self.latency[bucket.min(BUCKETS - 1)], 1);
    }

    pub(crate) fn set_refused(&self, refused: u64) {
        self.refused.store(refused, Relaxed);
    }

    #[inline]
    pub(crate) fn set_depth(&self, depth: usize) {
        self.depth.store(depth as u64, Relaxed);
    }

    pub(crate) fn count_wakeup(&self) {
        bump(&self.wakeups, 1);
    }

    pub(crate) fn count_notify(&self) {
        bump(&self.notifies, 1);
    }
}

/// Adds to a counter that one thread alone writes: a load and a store, without a locked instruction.
#[inline]
fn bump(counter: &AtomicU64, by: u64) {
    counter.store(counter.load(Relaxed) + by, Relaxed);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn latency_falls_into_bucket_of_its_power_of_two() {
        let stats = Stats::default();
        for (ns, bucket) in [(0, 0), (999, 0), (1_000, 1), (3_999, 2), (4_000, 3), (u64::MAX, BUCKETS - 1)] {
            let before = stats.latency()[bucket];
            stats.record_latency(Duration::from_nanos(ns));
            assert_eq!(stats.latency()[bucket], before + 1, "{ns}");
        }
    }
}
