//! A vif's counters over all its connections: written by the thread of its bridge, read by any other.

use std::sync::Arc;

use bridge::{Bridge, DropReason};
use event_loop::{Counter, EventCounters};
use xenbus::stats::{self, Count, Flips, Grants, Notifications, Operation, Snapshot};

/// One vif's counters, from the time it was found. One connection at a time counts.
#[derive(Debug, Default)]
pub struct Stats {
    /// Frames, as the bridge counts them.
    pub(crate) port: Arc<bridge::Stats>,
    /// The guest's pages mapped.
    pub(crate) mapped: Counter,
    /// Grant copies.
    pub(crate) copied: Counter,
    /// Pages flipped to the guest.
    pub(crate) flipped: Counter,
    /// Pages sent to be flipped into which a port had read frames, so that nothing was copied.
    pub(crate) direct: Counter,
    /// Pages that the guest gave back for that.
    pub(crate) returned: Counter,
    /// Pages that the guest's entries did not accept.
    pub(crate) refused: Counter,
    /// Events of both rings.
    pub(crate) events: Arc<EventCounters>,
    /// The longest turn of its bridge's loop.
    pub(crate) longest_turn_ns: Option<Arc<Counter>>,
}

impl Stats {
    /// The counters of a port of that bridge.
    pub(crate) fn of_port(bridge: &Bridge) -> Stats {
        Stats { longest_turn_ns: Some(bridge.longest_turn_ns().clone()), ..Stats::default() }
    }
}

impl stats::Stats for Stats {
    fn snapshot(&self) -> Snapshot {
        let port = self.port.read();
        // The rings have the guest's view: what it transmits the bridge receives.
        let operation = |name, requests, bytes| Operation { name, requests, bytes, ..Operation::default() };
        let drops = DropReason::ALL.map(|reason| Count { name: reason.name(), count: port.dropped(reason) });
        Snapshot {
            operations: vec![
                operation("transmit", port.rx_frames, port.rx_bytes),
                operation("receive", port.tx_frames, port.tx_bytes),
            ],
            notifications: Notifications {
                missed: port.missed_wakeups,
                ..Notifications::from(&*self.events)
            },
            grants: Some(Grants {
                mapped: self.mapped.get(),
                reused: None,
                copied: self.copied.get(),
                flips: Some(Flips {
                    flipped: self.flipped.get(),
                    direct: self.direct.get(),
                    returned: self.returned.get(),
                    refused: self.refused.get(),
                }),
            }),
            drops: drops.into(),
            mac_moves: Some(port.mac_moves),
            longest_turn_ns: self.longest_turn_ns.as_ref().map(|longest| longest.get()),
            ..Snapshot::default()
        }
    }
}
