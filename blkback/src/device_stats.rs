//! A device's counters: those of its queues, each written by a thread of its own.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use xenbus::stats::{self, Snapshot};

use crate::stats::Stats;

/// The counters of all queues that a device has had, from the time it was found. Each outlives its connection: the next one's
/// queue of the same number counts on.
#[derive(Debug)]
pub struct DeviceStats {
    /// Locked while a connection starts and while they are read.
    queues: Mutex<Vec<Arc<Stats>>>,
    /// The limits in force.
    limits: Mutex<stats::Limits>,
}

impl Default for DeviceStats {
    fn default() -> DeviceStats {
        DeviceStats { queues: Mutex::new(vec![Arc::default()]), limits: Mutex::default() }
    }
}

impl DeviceStats {
    /// The counters of the first `count` queues.
    pub(crate) fn of_queues(&self, count: usize) -> Vec<Arc<Stats>> {
        let mut queues = self.queues();
        if queues.len() < count {
            queues.resize_with(count, Arc::default);
        }
        queues[..count].to_vec()
    }

    /// Sets the limits that are in force.
    pub(crate) fn set_limits(&self, limits: stats::Limits) {
        *self.limits.lock().unwrap_or_else(PoisonError::into_inner) = limits;
    }

    fn queues(&self) -> MutexGuard<'_, Vec<Arc<Stats>>> {
        self.queues.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl stats::Stats for DeviceStats {
    fn snapshot(&self) -> Snapshot {
        let queues: Vec<_> = self.queues().iter().map(|queue| queue.snapshot()).collect();
        let mut all = Snapshot::default();
        queues.iter().for_each(|queue| all.merge(queue));
        Snapshot { queues, ..all }
    }

    fn limits(&self) -> stats::Limits {
        self.limits.lock().unwrap_or_else(PoisonError::into_inner).clone()
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
    }
}
