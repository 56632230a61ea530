//! A device's counters, without locks: written by the thread of its ring, read by any other.

use std::sync::Arc;
use std::time::{Duration, Instant};

use event_loop::{Counter, EventCounters, Histogram};
use ring_abi::blkif::{OP_DISCARD, OP_FLUSH_DISKCACHE, OP_READ, OP_WRITE, OP_WRITE_BARRIER, Status};
use xenbus::stats::{self, Count, Grants, Notifications, Snapshot};

use crate::request::Operation;

/// Why a request failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ErrorKind {
    /// The disk failed it.
    Io,
    /// The guest's pages could not be mapped or copied.
    Grant,
    /// It is malformed, past the disk's end, or a write to a read-only disk.
    Malformed,
    /// The disk does not support it.
    NotSupported,
    /// The file system of a sparse image is full, or its quota used up.
    NoSpace,
}

use ErrorKind::{Grant, Io, Malformed, NoSpace, NotSupported};

/// Kinds of errors.
const KINDS: usize = 5;
/// Kinds of [`Operation`].
const OPERATIONS: usize = 4;

impl ErrorKind {
    fn name(self) -> &'static str {
        match self {
            Io => "io",
            Grant => "grant",
            Malformed => "malformed",
            NotSupported => "not_supported",
            NoSpace => "no_space",
        }
    }
}

/// Requests that were answered without reaching the disk, by operation and reason.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Refused {
    malformed: [u32; OPERATIONS],
    not_supported: [u32; OPERATIONS],
    /// Those for operations that no disk supports.
    other: u32,
    any: bool,
}

impl Refused {
    /// Counts a request for this operation (`BLKIF_OP_*`), which was answered with `status`.
    #[cold]
    pub(crate) fn count(&mut self, operation: u8, status: Status) {
        let reason = if status == Status::EOPNOTSUPP { &mut self.not_supported } else { &mut self.malformed };
        *match operation {
            OP_READ => &mut reason[Operation::Read as usize],
            OP_WRITE | OP_WRITE_BARRIER => &mut reason[Operation::Write as usize],
            OP_FLUSH_DISKCACHE => &mut reason[Operation::Flush as usize],
            OP_DISCARD => &mut reason[Operation::Discard as usize],
            _ => &mut self.other,
        } += 1;
        self.any = true;
    }

    /// Whether any request is counted.
    #[inline]
    pub fn any(&self) -> bool {
        self.any
    }
}

/// Counters of one operation.
#[derive(Debug, Default)]
struct OpCounters {
    requests: Counter,
    bytes: Counter,
    errors: [Counter; KINDS],
    latency: Histogram,
}

impl OpCounters {
    #[inline]
    fn failed(&self, kind: ErrorKind, requests: u64) {
        self.requests.add(requests);
        self.errors[kind as usize].add(requests);
    }

    fn read(&self, name: &'static str, kinds: &[ErrorKind]) -> stats::Operation {
        let error = |kind: &ErrorKind| Count { name: kind.name(), count: self.errors[*kind as usize].get() };
        stats::Operation {
            name,
            requests: self.requests.get(),
            bytes: self.bytes.get(),
            errors: kinds.iter().map(error).collect(),
            latency: Some(self.latency.read()),
        }
    }
}

/// One device's counters, from the time it was found. A barrier counts as the flushes and the write that it is made of.
#[derive(Debug, Default)]
pub struct Stats {
    /// By [`Operation`].
    operations: [OpCounters; OPERATIONS],
    /// Requests for operations that no disk supports.
    other: Counter,
    in_flight: Counter,
    wakeups: Counter,
    /// Events of the ring.
    pub(crate) events: Arc<EventCounters>,
    /// Accesses to the guest's pages.
    pub(crate) pages: Pages,
}

/// Counters of accesses to the guest's pages.
#[derive(Debug, Default)]
pub(crate) struct Pages {
    pub(crate) mapped: Counter,
    pub(crate) reused: Counter,
    pub(crate) copied: Counter,
}

impl Stats {
    /// Counts operations that succeeded and took equally long.
    #[inline]
    fn done(&self, operation: Operation, requests: u64, bytes: u64, latency: Duration) {
        let counters = &self.operations[operation as usize];
        counters.requests.add(requests);
        counters.bytes.add(bytes);
        counters.latency.record_many(latency, requests);
    }

    /// Counts an operation that failed.
    #[cold]
    pub(crate) fn failed(&self, operation: Operation, kind: ErrorKind) {
        self.operations[operation as usize].failed(kind, 1);
    }

    /// Counts requests that were refused, and takes them out of `refused`.
    #[cold]
    pub(crate) fn refused(&self, refused: &mut Refused) {
        let refused = std::mem::take(refused);
        for (number, counters) in self.operations.iter().enumerate() {
            counters.failed(Malformed, refused.malformed[number].into());
            counters.failed(NotSupported, refused.not_supported[number].into());
        }
        self.other.add(refused.other.into());
    }

    #[inline]
    pub(crate) fn set_in_flight(&self, in_flight: usize) {
        self.in_flight.set(in_flight as u64);
    }

    pub(crate) fn count_wakeup(&self) {
        self.wakeups.add(1);
    }
}

/// Counts the operations that succeeded of one batch of completions. Those that were taken together, which are most, cost
/// one update of the counters.
pub(crate) struct Tally<'s> {
    stats: &'s Stats,
    now: Instant,
    operation: Operation,
    taken: Instant,
    requests: u64,
    bytes: u64,
}

impl<'s> Tally<'s> {
    /// Counts operations that completed at time `now`.
    pub(crate) fn new(stats: &'s Stats, now: Instant) -> Tally<'s> {
        Tally { stats, now, operation: Operation::Read, taken: now, requests: 0, bytes: 0 }
    }

    /// Counts an operation whose request was taken at this time.
    #[inline]
    pub(crate) fn done(&mut self, operation: Operation, bytes: usize, taken: Instant) {
        if operation != self.operation || taken != self.taken {
            self.flush();
            self.operation = operation;
            self.taken = taken;
        }
        self.requests += 1;
        self.bytes += bytes as u64;
    }

    fn flush(&mut self) {
        if self.requests > 0 {
            let latency = self.now.saturating_duration_since(self.taken);
            self.stats.done(self.operation, self.requests, self.bytes, latency);
            self.requests = 0;
            self.bytes = 0;
        }
    }
}

impl Drop for Tally<'_> {
    fn drop(&mut self) {
        self.flush();
    }
}

impl stats::Stats for Stats {
    fn snapshot(&self) -> Snapshot {
        let [read, write, flush, discard] = &self.operations;
        let other = self.other.get();
        let other = stats::Operation {
            name: "other",
            requests: other,
            errors: vec![Count { name: NotSupported.name(), count: other }],
            ..stats::Operation::default()
        };
        Snapshot {
            operations: vec![
                read.read("read", &[Io, Grant, Malformed]),
                write.read("write", &[Io, NoSpace, Grant, Malformed, NotSupported]),
                flush.read("flush", &[Io, NoSpace, Malformed, NotSupported]),
                discard.read("discard", &[Io, NoSpace, Malformed, NotSupported]),
                other,
            ],
            in_flight: Some(self.in_flight.get()),
            notifications: Notifications::from(&*self.events),
            grants: Some(Grants {
                mapped: self.pages.mapped.get(),
                reused: Some(self.pages.reused.get()),
                copied: self.pages.copied.get(),
                flips: None,
            }),
            wakeups: Some(self.wakeups.get()),
            drops: Vec::new(),
            ..Snapshot::default()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use xenbus::stats::Stats as _;

    #[test]
    fn snapshot_has_each_request_by_operation_and_kind_of_error() {
        let stats = Stats::default();
        let now = Instant::now() + Duration::from_secs(1);
        let before = |us| now - Duration::from_micros(us);
        let mut tally = Tally::new(&stats, now);
        for (operation, bytes, taken) in [
            (Operation::Read, 4096, before(50)),
            (Operation::Read, 8192, before(50)),
            (Operation::Write, 512, before(50)),
            (Operation::Read, 4096, before(70)),
        ] {
            tally.done(operation, bytes, taken);
        }
        drop(tally);
        stats.failed(Operation::Write, Grant);
        let mut refused = Refused::default();
        assert!(!refused.any());
        for (operation, status) in [
            (OP_READ, Status::ERROR),
            (OP_WRITE_BARRIER, Status::EOPNOTSUPP),
            (OP_FLUSH_DISKCACHE, Status::ERROR),
            (OP_DISCARD, Status::EOPNOTSUPP),
            (4, Status::EOPNOTSUPP),
        ] {
            refused.count(operation, status);
        }
        assert!(refused.any());
        stats.refused(&mut refused);
        assert_eq!(refused, Refused::default());

        let snapshot = stats.snapshot();
        let operation = |name| snapshot.operation(name).unwrap();
        let read = operation("read");
        assert_eq!((read.requests, read.bytes, read.error("malformed")), (4, 16384, 1));
        let latency = read.latency.as_ref().unwrap();
        assert_eq!((latency.count(), latency.max()), (3, Duration::from_micros(70)));
        assert!(latency.quantile(2, 3).unwrap() < Duration::from_micros(57));
        let write = operation("write");
        assert_eq!((write.requests, write.bytes), (3, 512));
        assert_eq!((write.error("grant"), write.error("not_supported"), write.error("io")), (1, 1, 0));
        assert_eq!((operation("flush").requests, operation("flush").error("malformed")), (1, 1));
        assert_eq!((operation("discard").requests, operation("discard").error("not_supported")), (1, 1));
        assert_eq!((operation("other").requests, operation("other").error("not_supported")), (1, 1));
    }
}
