//! A device's counters: those of its queues, each written by a thread of its own.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use xenbus::stats::{self, Snapshot};

use crate::engine::DiskInfo;
use crate::engine::base_cache::DiskCache;
use crate::handshake::{Abi, Negotiated};
use crate::stats::Stats;

/// The counters of all queues that a device has had, from the time it was found. Each outlives its connection: the next one's
/// queue of the same number counts on.
#[derive(Debug)]
pub struct DeviceStats {
    /// Locked while a connection starts and while they are read.
    queues: Mutex<Vec<Arc<Stats>>>,
    /// What the present connection uses.
    negotiated: Mutex<Vec<stats::Negotiated>>,
    /// The limits in force.
    limits: Mutex<stats::Limits>,
    /// What the disk has of the cache of base images.
    cache: Option<DiskCache>,
}

impl Default for DeviceStats {
    fn default() -> DeviceStats {
        let queues = Mutex::new(vec![Arc::default()]);
        DeviceStats { queues, negotiated: Mutex::default(), limits: Mutex::default(), cache: None }
    }
}

impl DeviceStats {
    /// Of a disk that has this of the cache of base images.
    pub(crate) fn new(cache: Option<DiskCache>) -> DeviceStats {
        DeviceStats { cache, ..DeviceStats::default() }
    }

    /// Says what a connection uses that starts, of a disk with these properties.
    pub(crate) fn connected(&self, negotiated: &Negotiated, info: &DiskInfo) {
        let pages = negotiated.queues.first().map_or(0, |queue| queue.refs.len());
        let of = |name, value| stats::Negotiated { name, value };
        *lock(&self.negotiated) = vec![
            of("queues", negotiated.queues.len() as u64),
            of("ring_pages", pages as u64),
            of("x86_32_abi", u64::from(negotiated.abi == Abi::X86_32)),
            of("persistent", u64::from(negotiated.persistent)),
            of("indirect_segments", negotiated.indirect_segments.into()),
            of("flush", u64::from(info.flush)),
            of("discard", u64::from(info.discard.is_some())),
        ];
    }

    /// Sets the limits that are in force.
    pub(crate) fn set_limits(&self, limits: stats::Limits) {
        *lock(&self.limits) = limits;
    }

    /// Says that the connection has ended.
    pub(crate) fn disconnected(&self) {
        lock(&self.negotiated).clear();
    }

    /// The counters of the first `count` queues.
    pub(crate) fn of_queues(&self, count: usize) -> Vec<Arc<Stats>> {
        let mut queues = lock(&self.queues);
        if queues.len() < count {
            queues.resize_with(count, Arc::default);
        }
        queues[..count].to_vec()
    }
}

/// Locks what no panic leaves inconsistent.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl stats::Stats for DeviceStats {
    fn snapshot(&self) -> Snapshot {
        let queues: Vec<_> = lock(&self.queues).iter().map(|queue| queue.snapshot()).collect();
        let mut all = Snapshot::default();
        queues.iter().for_each(|queue| all.merge(queue));
        let base_cache = self.cache.as_ref().and_then(DiskCache::stats);
        Snapshot { queues, base_cache, negotiated: lock(&self.negotiated).clone(), ..all }
    }

    fn limits(&self) -> stats::Limits {
        lock(&self.limits).clone()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Instant;
    use xenbus::stats::Stats as _;

    use crate::request::Operation;
    use crate::stats::Tally;

    #[test]
    fn snapshot_is_the_sum_of_the_queues_and_has_each_of_them() {
        let device = DeviceStats::default();
        let now = Instant::now();
        for (number, queue) in device.of_queues(2).iter().enumerate() {
            (0..=number).for_each(|_| Tally::new(queue, now).done(Operation::Read, 4096, now));
        }
        // Another connection, with a queue less.
        Tally::new(&device.of_queues(1)[0], now).done(Operation::Read, 4096, now);
        let snapshot = device.snapshot();
        let reads = |snapshot: &Snapshot| snapshot.operation("read").unwrap().requests;
        assert_eq!(reads(&snapshot), 4);
        assert_eq!(snapshot.queues.iter().map(reads).collect::<Vec<_>>(), [2, 2]);
        assert!(snapshot.negotiated.is_empty(), "nothing is connected");
    }
}
