//! What a device has counted, as a value of the same form for all drivers.
//!
//! A driver's threads count by [`event_loop::Counter`]: relaxed stores. A [`Snapshot`] is taken when somebody asks for it.

use alloc::string::String;
use alloc::vec::Vec;

use event_loop::{Distribution, EventCounters, EventCounts};

/// What takes a snapshot of a device's counters, on any thread and without disturbing the thread that counts.
pub trait Stats: Send + Sync {
    /// Reads the counters, each by itself: they are not of one instant.
    fn snapshot(&self) -> Snapshot;

    /// The limits of the device that are in force.
    fn limits(&self) -> Limits {
        Limits::default()
    }
}

/// The limits of a device.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Limits {
    /// Those that there are, by the names of the keys that set them.
    pub values: Vec<(&'static str, u64)>,
    /// The group of devices that share them, if there is one.
    pub group: Option<String>,
}

/// A name, and how often what it names has happened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Count {
    /// The name, as documents and JSON have it: lower case, words joined by `_`.
    pub name: &'static str,
    /// How often.
    pub count: u64,
}

/// Something that two ends have agreed on, and how many of it, or 1 where it is used and 0 where it is not.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Negotiated {
    /// The name, in the form of [`Count::name`].
    pub name: &'static str,
    /// How many, or whether.
    pub value: u64,
}

/// The counters of a device since it was found, over all its connections; or their sums over several devices.
///
/// ```
/// use xenbus::stats::{Count, Operation, Snapshot};
///
/// let errors = vec![Count { name: "io", count: 1 }];
/// let read = Operation { name: "read", requests: 10, bytes: 36864, errors, latency: None };
/// let mut total = Snapshot { operations: vec![read], ..Snapshot::default() };
/// total.merge(&total.clone());
/// assert_eq!(total.operation("read").unwrap().requests, 20);
/// assert_eq!(total.operation("read").unwrap().error("io"), 2);
/// ```
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Snapshot {
    /// What the device did: `read`, `write`, ... for disks, `transmit` and `receive` for network interfaces.
    pub operations: Vec<Operation>,
    /// Requests taken and not answered yet; `None` where that is not counted.
    pub in_flight: Option<u64>,
    /// Events on the device's event channels.
    pub notifications: Notifications,
    /// The peer's pages; `None` for frontends, which access none.
    pub grants: Option<Grants>,
    /// How often the device's own thread was woken; `None` where it has none.
    pub wakeups: Option<u64>,
    /// Frames dropped, by reason; empty for disks.
    pub drops: Vec<Count>,
    /// Times that a station was seen at the device's port of a bridge, and at another one before; `None` for disks.
    pub mac_moves: Option<u64>,
    /// The longest turn of the loop that serves the device, with others as a rule, in nanoseconds of its thread's processor time;
    /// `None` where that is not measured.
    pub longest_turn_ns: Option<u64>,
    /// What a disk has had of the cache of files that many disks share; `None` where none is used.
    pub base_cache: Option<BaseCache>,
    /// What the present connection uses; empty where there is none, for drivers that do not say, and in sums.
    pub negotiated: Vec<Negotiated>,
    /// The counters of each queue of a device whose queues are served by threads of their own, which are sums above; empty for
    /// others, and in sums over several devices.
    pub queues: Vec<Snapshot>,
}

/// The counters of one operation.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Operation {
    /// Its name.
    pub name: &'static str,
    /// Requests that were answered, or frames; those that failed included.
    pub requests: u64,
    /// Bytes of those that succeeded.
    pub bytes: u64,
    /// Requests that failed, by kind.
    pub errors: Vec<Count>,
    /// From the time at which a request was taken to its completion; `None` where that is not measured.
    pub latency: Option<Distribution>,
}

/// Events of a device's event channels, which are hypercalls, or system calls.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Notifications {
    /// Events sent to the peer.
    pub sent: u64,
    /// Times that requests or responses were published and no event was sent for them: the peer wanted none, or one
    /// was to be sent already.
    pub suppressed: u64,
    /// Events taken from the peer; several that it sent may be one.
    pub received: u64,
    /// Times that there was work and no event for it, so that a look once a second found it. Each is an error, of the peer's or
    /// ours.
    pub missed: u64,
}

/// How a backend has accessed the frontend's pages.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Grants {
    /// Pages mapped.
    pub mapped: u64,
    /// Pages that were needed and mapped already, being persistent grants; `None` where none stay mapped.
    pub reused: Option<u64>,
    /// Grant copies: parts of pages copied by the hypervisor.
    pub copied: u64,
    /// Pages that changed their owner; `None` for drivers that transfer none.
    pub flips: Option<Flips>,
}

/// Pages that changed their owner.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Flips {
    /// Pages transferred to the frontend.
    pub flipped: u64,
    /// Pages sent to be transferred into which frames had been read, so that the backend copied nothing.
    pub direct: u64,
    /// Pages that the frontend gave back, to be transferred again.
    pub returned: u64,
    /// Pages that the frontend did not accept, by an entry that it revoked, rewrote or used twice.
    pub refused: u64,
}

/// What a disk has had of the cache of files that many disks share. A lookup of a block is a hit, a wait or a miss.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct BaseCache {
    /// Blocks that were there.
    pub hits: u64,
    /// Blocks that were being read by somebody else, and waited for.
    pub waits: u64,
    /// Blocks that were read.
    pub misses: u64,
    /// Bytes that were read from the files.
    pub read_bytes: u64,
    /// Bytes that the cache has of all disks' files.
    pub cached_bytes: u64,
    /// Bytes that it has at most.
    pub limit_bytes: u64,
}

impl BaseCache {
    fn merge(&mut self, other: BaseCache) {
        self.hits += other.hits;
        self.waits += other.waits;
        self.misses += other.misses;
        self.read_bytes += other.read_bytes;
        // Of one cache, as a rule.
        self.cached_bytes = self.cached_bytes.max(other.cached_bytes);
        self.limit_bytes = self.limit_bytes.max(other.limit_bytes);
    }
}

impl From<&EventCounters> for Notifications {
    fn from(events: &EventCounters) -> Notifications {
        let EventCounts { sent, suppressed, taken } = events.read();
        Notifications { sent, suppressed, received: taken, missed: 0 }
    }
}

impl Snapshot {
    /// The counters of the operation with this name.
    pub fn operation(&self, name: &str) -> Option<&Operation> {
        self.operations.iter().find(|operation| operation.name == name)
    }

    /// How many frames were dropped for the reason with this name; 0 for an unknown one.
    pub fn drop(&self, name: &str) -> u64 {
        count(&self.drops, name)
    }

    /// Adds the counters of another device.
    pub fn merge(&mut self, other: &Snapshot) {
        for more in &other.operations {
            match self.operations.iter_mut().find(|operation| operation.name == more.name) {
                Some(operation) => operation.merge(more),
                None => self.operations.push(more.clone()),
            }
        }
        self.in_flight = sum(self.in_flight, other.in_flight);
        self.wakeups = sum(self.wakeups, other.wakeups);
        self.mac_moves = sum(self.mac_moves, other.mac_moves);
        self.longest_turn_ns = self.longest_turn_ns.max(other.longest_turn_ns);
        self.notifications.sent += other.notifications.sent;
        self.notifications.suppressed += other.notifications.suppressed;
        self.notifications.received += other.notifications.received;
        self.notifications.missed += other.notifications.missed;
        if let Some(more) = &other.grants {
            let grants = self.grants.get_or_insert_default();
            grants.mapped += more.mapped;
            grants.reused = sum(grants.reused, more.reused);
            grants.copied += more.copied;
            if let Some(more) = more.flips {
                let flips = grants.flips.get_or_insert_default();
                flips.flipped += more.flipped;
                flips.direct += more.direct;
                flips.returned += more.returned;
                flips.refused += more.refused;
            }
        }
        if let Some(more) = other.base_cache {
            self.base_cache.get_or_insert_default().merge(more);
        }
        merge(&mut self.drops, &other.drops);
    }
}

impl Operation {
    /// How many requests failed by the kind of error with this name; 0 for an unknown one.
    pub fn error(&self, name: &str) -> u64 {
        count(&self.errors, name)
    }

    fn merge(&mut self, other: &Operation) {
        self.requests += other.requests;
        self.bytes += other.bytes;
        merge(&mut self.errors, &other.errors);
        if let Some(more) = &other.latency {
            self.latency.get_or_insert_default().merge(more);
        }
    }
}

fn count(counts: &[Count], name: &str) -> u64 {
    counts.iter().find(|count| count.name == name).map_or(0, |count| count.count)
}

fn sum(one: Option<u64>, other: Option<u64>) -> Option<u64> {
    match (one, other) {
        (Some(one), Some(other)) => Some(one + other),
        (one, other) => one.or(other),
    }
}

fn merge(counts: &mut Vec<Count>, others: &[Count]) {
    for more in others {
        match counts.iter_mut().find(|count| count.name == more.name) {
            Some(count) => count.count += more.count,
            None => counts.push(*more),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::vec;
    use core::time::Duration;
    use event_loop::Histogram;

    fn snapshot(name: &'static str, latency: Option<Duration>) -> Snapshot {
        let histogram = Histogram::default();
        latency.iter().for_each(|&latency| histogram.record(latency));
        let errors = vec![Count { name: "io", count: 1 }];
        let distribution = latency.map(|_| histogram.read());
        Snapshot {
            operations: vec![Operation { name, requests: 2, bytes: 512, errors, latency: distribution }],
            in_flight: Some(3),
            notifications: Notifications { sent: 4, suppressed: 5, received: 6, missed: 7 },
            grants: Some(Grants {
                mapped: 7,
                reused: Some(8),
                copied: 9,
                flips: Some(Flips { flipped: 12, direct: 11, returned: 13, refused: 14 }),
            }),
            wakeups: None,
            drops: vec![Count { name, count: 10 }],
            mac_moves: Some(3),
            longest_turn_ns: latency.map(|latency| latency.as_nanos() as u64),
            base_cache: latency.map(|_| BaseCache {
                hits: 1,
                waits: 2,
                misses: 3,
                read_bytes: 4,
                cached_bytes: 5,
                limit_bytes: 6,
            }),
            negotiated: Vec::new(),
            queues: Vec::new(),
        }
    }

    #[test]
    fn merge_adds_what_both_have_and_keeps_what_one_has() {
        let mut total = Snapshot::default();
        total.merge(&snapshot("read", Some(Duration::from_millis(1))));
        total.merge(&snapshot("read", Some(Duration::from_millis(2))));
        total.merge(&snapshot("write", None));
        let read = total.operation("read").unwrap();
        assert_eq!((read.requests, read.bytes, read.error("io"), read.error("none")), (4, 1024, 2, 0));
        let latency = read.latency.as_ref().unwrap();
        assert_eq!((latency.count(), latency.max()), (2, Duration::from_millis(2)));
        assert_eq!(total.operation("write").unwrap().latency, None);
        assert_eq!((total.in_flight, total.wakeups), (Some(9), None));
        assert_eq!((total.mac_moves, total.longest_turn_ns), (Some(9), Some(2_000_000)));
        assert_eq!(total.notifications, Notifications { sent: 12, suppressed: 15, received: 18, missed: 21 });
        let flips = Some(Flips { flipped: 36, direct: 33, returned: 39, refused: 42 });
        assert_eq!(total.grants, Some(Grants { mapped: 21, reused: Some(24), copied: 27, flips }));
        let (hits, waits, misses, read_bytes) = (2, 4, 6, 8);
        let base_cache = BaseCache { hits, waits, misses, read_bytes, cached_bytes: 5, limit_bytes: 6 };
        assert_eq!(total.base_cache, Some(base_cache));
        assert_eq!((total.drop("read"), total.drop("write")), (20, 10));
    }
}
