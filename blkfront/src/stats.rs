//! A disk's counters over all its connections: written by the thread that uses it, read by any other.

use std::sync::Arc;

use event_loop::{Counter, EventCounters};
use ring_abi::blkif::Status;
use xenbus::stats::{self, Count, Notifications, Snapshot};

use crate::queue::Operation;

/// Counters of one operation.
#[derive(Debug, Default)]
struct Counters {
    requests: Counter,
    bytes: Counter,
    /// Responses with `BLKIF_RSP_ERROR`, or an unknown status.
    failed: Counter,
    /// Responses with `BLKIF_RSP_EOPNOTSUPP`.
    not_supported: Counter,
}

impl Counters {
    fn read(&self, name: &'static str) -> stats::Operation {
        stats::Operation {
            name,
            requests: self.requests.get(),
            bytes: self.bytes.get(),
            errors: vec![
                Count { name: "io", count: self.failed.get() },
                Count { name: "not_supported", count: self.not_supported.get() },
            ],
            latency: None,
        }
    }
}

/// Live counters of a disk.
#[derive(Debug, Default)]
pub struct Stats {
    /// By [`Operation`].
    operations: [Counters; 4],
    in_flight: Counter,
    /// Events of the ring.
    pub(crate) events: Arc<EventCounters>,
}

impl Stats {
    /// Counts a batch of responses, each by its operation, bytes and status. Those of one operation in a row cost one
    /// update of the counters.
    #[inline]
    pub(crate) fn completed(&self, batch: impl Iterator<Item = (Operation, usize, Status)>) {
        let mut last = Operation::Read;
        let mut requests = 0;
        let mut bytes = 0;
        for (operation, len, status) in batch {
            if status != Status::OKAY {
                self.failed(operation, status);
                continue;
            }
            if operation != last {
                self.done(last, requests, bytes);
                last = operation;
                requests = 0;
                bytes = 0;
            }
            requests += 1;
            bytes += len as u64;
        }
        self.done(last, requests, bytes);
    }

    /// Counts responses to requests that succeeded.
    #[inline]
    fn done(&self, operation: Operation, requests: u64, bytes: u64) {
        let counters = &self.operations[operation as usize];
        counters.requests.add(requests);
        counters.bytes.add(bytes);
    }

    /// Counts a response to a request that failed.
    #[cold]
    fn failed(&self, operation: Operation, status: Status) {
        let counters = &self.operations[operation as usize];
        counters.requests.add(1);
        match status {
            Status::EOPNOTSUPP => counters.not_supported.add(1),
            _ => counters.failed.add(1),
        }
    }

    #[inline]
    pub(crate) fn set_in_flight(&self, in_flight: usize) {
        self.in_flight.set(in_flight as u64);
    }
}

impl stats::Stats for Stats {
    fn snapshot(&self) -> Snapshot {
        let [read, write, barrier, flush] = &self.operations;
        Snapshot {
            operations: vec![
                read.read("read"),
                write.read("write"),
                barrier.read("barrier"),
                flush.read("flush"),
            ],
            in_flight: Some(self.in_flight.get()),
            notifications: Notifications::from(&*self.events),
            ..Snapshot::default()
        }
    }
}
