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

/// The names of operations in reports, by [`index`].
const NAMES: [&str; 5] = ["read", "write", "barrier", "flush", "discard"];

/// The place of an operation there.
#[inline]
fn index(operation: Operation) -> usize {
    match operation {
        Operation::Discard => 4,
        // As in requests: 0 to 3.
        other => other as usize,
    }
}

/// Live counters of a disk.
#[derive(Debug, Default)]
pub struct Stats {
    /// By [`index`].
    operations: [Counters; NAMES.len()],
    in_flight: Counter,
    /// Events of the ring.
    pub(crate) events: Arc<EventCounters>,
}

impl Stats {
    /// Counts a batch of responses.
    #[inline]
    pub(crate) fn completed(&self, tally: &Tally) {
        for (counters, counted) in self.operations.iter().zip(&tally.0) {
            if counted.requests > 0 {
                counters.requests.add(counted.requests);
                counters.bytes.add(counted.bytes);
                counters.failed.add(counted.failed);
                counters.not_supported.add(counted.not_supported);
            }
        }
    }

    #[inline]
    pub(crate) fn set_in_flight(&self, in_flight: usize) {
        self.in_flight.set(in_flight as u64);
    }
}

/// The responses of one batch, which cost one update of the counters.
#[derive(Debug, Default)]
pub(crate) struct Tally([Counted; NAMES.len()]);

/// The responses to one operation's requests in a batch.
#[derive(Debug, Default)]
struct Counted {
    requests: u64,
    bytes: u64,
    failed: u64,
    not_supported: u64,
}

impl Tally {
    /// Counts a response to a request for these bytes, which count if it did not fail.
    #[inline]
    pub(crate) fn add(&mut self, operation: Operation, bytes: usize, status: Status) {
        let counted = &mut self.0[index(operation)];
        counted.requests += 1;
        if status == Status::OKAY {
            counted.bytes += bytes as u64;
        } else {
            counted.fail(status);
        }
    }
}

impl Counted {
    #[cold]
    fn fail(&mut self, status: Status) {
        match status {
            Status::EOPNOTSUPP => self.not_supported += 1,
            _ => self.failed += 1,
        }
    }
}

impl stats::Stats for Stats {
    fn snapshot(&self) -> Snapshot {
        let operations = self.operations.iter().zip(NAMES);
        Snapshot {
            operations: operations.map(|(counters, name)| counters.read(name)).collect(),
            in_flight: Some(self.in_flight.get()),
            notifications: Notifications::from(&*self.events),
            ..Snapshot::default()
        }
    }
}
