//! Counters in the form of the control protocol: fields and units are described in `docs/control.md`.

use std::collections::BTreeMap;

use event_loop::Distribution;
use serde::Serialize;
use xenbus::stats::{self, Count, Snapshot};

/// The counters of a device, or of several.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Stats {
    operations: BTreeMap<&'static str, Operation>,
    in_flight: Option<u64>,
    notifications: Notifications,
    grants: Option<Grants>,
    wakeups: Option<u64>,
    drops: BTreeMap<&'static str, u64>,
    mac_moves: Option<u64>,
    longest_turn_ns: Option<u64>,
    base_cache: Option<BaseCache>,
    negotiated: BTreeMap<&'static str, u64>,
    queues: Vec<Queue>,
}

/// The counters of one queue of a device.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
struct Queue {
    operations: BTreeMap<&'static str, Operation>,
    in_flight: Option<u64>,
    notifications: Notifications,
    grants: Option<Grants>,
    wakeups: Option<u64>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
struct Operation {
    requests: u64,
    bytes: u64,
    errors: BTreeMap<&'static str, u64>,
    latency_ns: Option<Latency>,
}

/// What a disk has had of the cache of base images.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
struct BaseCache {
    hits: u64,
    waits: u64,
    misses: u64,
    read_bytes: u64,
    cached_bytes: u64,
    limit_bytes: u64,
}

/// Quantiles in nanoseconds.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
struct Latency {
    p50: u64,
    p90: u64,
    p99: u64,
    p99_9: u64,
    max: u64,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
struct Notifications {
    sent: u64,
    suppressed: u64,
    received: u64,
    missed: u64,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
struct Grants {
    mapped: u64,
    reused: Option<u64>,
    copied: u64,
    flipped: Option<u64>,
    direct: Option<u64>,
    returned: Option<u64>,
    refused: Option<u64>,
}

impl From<&Snapshot> for Stats {
    fn from(snapshot: &Snapshot) -> Stats {
        let Snapshot {
            operations,
            in_flight,
            notifications,
            grants,
            wakeups,
            drops,
            mac_moves,
            longest_turn_ns,
            base_cache,
            negotiated,
            queues,
        } = snapshot;
        Stats {
            operations: operations.iter().map(|each| (each.name, Operation::from(each))).collect(),
            in_flight: *in_flight,
            notifications: Notifications::from(*notifications),
            grants: grants.map(Grants::from),
            wakeups: *wakeups,
            drops: by_name(drops),
            mac_moves: *mac_moves,
            longest_turn_ns: *longest_turn_ns,
            base_cache: base_cache.map(BaseCache::from),
            negotiated: negotiated.iter().map(|each| (each.name, each.value)).collect(),
            queues: queues.iter().map(Queue::from).collect(),
        }
    }
}

impl From<&Snapshot> for Queue {
    fn from(snapshot: &Snapshot) -> Queue {
        Queue {
            operations: snapshot.operations.iter().map(|each| (each.name, Operation::from(each))).collect(),
            in_flight: snapshot.in_flight,
            notifications: Notifications::from(snapshot.notifications),
            grants: snapshot.grants.map(Grants::from),
            wakeups: snapshot.wakeups,
        }
    }
}

impl From<stats::Notifications> for Notifications {
    fn from(notifications: stats::Notifications) -> Notifications {
        let stats::Notifications { sent, suppressed, received, missed } = notifications;
        Notifications { sent, suppressed, received, missed }
    }
}

impl From<stats::Grants> for Grants {
    fn from(grants: stats::Grants) -> Grants {
        let stats::Grants { mapped, reused, copied, flips } = grants;
        Grants {
            mapped,
            reused,
            copied,
            flipped: flips.map(|flips| flips.flipped),
            direct: flips.map(|flips| flips.direct),
            returned: flips.map(|flips| flips.returned),
            refused: flips.map(|flips| flips.refused),
        }
    }
}

impl From<stats::BaseCache> for BaseCache {
    fn from(cache: stats::BaseCache) -> BaseCache {
        let stats::BaseCache { hits, waits, misses, read_bytes, cached_bytes, limit_bytes } = cache;
        BaseCache { hits, waits, misses, read_bytes, cached_bytes, limit_bytes }
    }
}

impl From<&stats::Operation> for Operation {
    fn from(operation: &stats::Operation) -> Operation {
        Operation {
            requests: operation.requests,
            bytes: operation.bytes,
            errors: by_name(&operation.errors),
            latency_ns: operation.latency.as_ref().and_then(Latency::of),
        }
    }
}

impl Latency {
    /// `None` if nothing was measured yet.
    fn of(latency: &Distribution) -> Option<Latency> {
        let quantile =
            |numerator, denominator| Some(latency.quantile(numerator, denominator)?.as_nanos() as u64);
        Some(Latency {
            p50: quantile(1, 2)?,
            p90: quantile(9, 10)?,
            p99: quantile(99, 100)?,
            p99_9: quantile(999, 1000)?,
            max: latency.max().as_nanos() as u64,
        })
    }
}

fn by_name(counts: &[Count]) -> BTreeMap<&'static str, u64> {
    counts.iter().map(|count| (count.name, count.count)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use event_loop::Histogram;
    use std::time::Duration;

    #[test]
    fn report_has_every_counter_under_its_documented_name() {
        let latency = Histogram::default();
        (0..1000).for_each(|_| latency.record(Duration::from_micros(1)));
        latency.record(Duration::from_millis(1));
        let read = stats::Operation {
            name: "read",
            requests: 1001,
            bytes: 4096,
            errors: vec![Count { name: "io", count: 2 }],
            latency: Some(latency.read()),
        };
        let snapshot = Snapshot {
            operations: vec![read, stats::Operation { name: "flush", ..Default::default() }],
            in_flight: Some(3),
            notifications: stats::Notifications { sent: 4, suppressed: 5, received: 6, missed: 11 },
            grants: Some(stats::Grants {
                mapped: 7,
                reused: Some(8),
                copied: 9,
                flips: Some(stats::Flips { flipped: 12, direct: 11, returned: 13, refused: 14 }),
            }),
            wakeups: None,
            drops: vec![Count { name: "no_room", count: 10 }],
            mac_moves: Some(15),
            longest_turn_ns: Some(16),
            base_cache: Some(stats::BaseCache {
                hits: 18,
                waits: 19,
                misses: 20,
                read_bytes: 21,
                cached_bytes: 22,
                limit_bytes: 23,
            }),
            negotiated: vec![stats::Negotiated { name: "ring_pages", value: 4 }],
            queues: vec![Snapshot { in_flight: Some(3), wakeups: Some(17), ..Snapshot::default() }],
        };
        let expected = serde_json::json!({
            "operations": {
                "read": {
                    "requests": 1001, "bytes": 4096, "errors": {"io": 2},
                    "latency_ns": {"p50": 1023, "p90": 1023, "p99": 1023, "p99_9": 1023, "max": 1_000_000},
                },
                "flush": {"requests": 0, "bytes": 0, "errors": {}, "latency_ns": null},
            },
            "in_flight": 3,
            "notifications": {"sent": 4, "suppressed": 5, "received": 6, "missed": 11},
            "grants": {
                "mapped": 7, "reused": 8, "copied": 9, "flipped": 12, "direct": 11, "returned": 13, "refused": 14,
            },
            "wakeups": null,
            "drops": {"no_room": 10},
            "mac_moves": 15,
            "longest_turn_ns": 16,
            "base_cache": {
                "hits": 18, "waits": 19, "misses": 20, "read_bytes": 21, "cached_bytes": 22, "limit_bytes": 23,
            },
            "negotiated": {"ring_pages": 4},
            "queues": [{
                "operations": {},
                "in_flight": 3,
                "notifications": {"sent": 0, "suppressed": 0, "received": 0, "missed": 0},
                "grants": null,
                "wakeups": 17,
            }],
        });
        assert_eq!(serde_json::to_value(Stats::from(&snapshot)).unwrap(), expected);
    }
}
