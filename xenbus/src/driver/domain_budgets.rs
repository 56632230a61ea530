//! How often the devices of each domain may be read: one with many devices is bounded as one with few (XSA-349).

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use event_loop::TokenBucket;
use ring_abi::DomId;

/// Refreshes of all devices of one domain at once; a handshake takes about ten for each device.
const BURST: u64 = 1000;
/// Refreshes of all devices of one domain a second after the burst.
const RATE: u64 = 200;

/// What is left of each frontend's domain's refreshes.
pub(super) struct DomainBudgets {
    /// The epoch of the times that token buckets take.
    started: Instant,
    left: BTreeMap<DomId, TokenBucket>,
}

impl DomainBudgets {
    pub(super) fn new(now: Instant) -> DomainBudgets {
        DomainBudgets { started: now, left: BTreeMap::new() }
    }

    /// The time that refreshes are counted by.
    pub(super) fn time(&self, now: Instant) -> Duration {
        now.saturating_duration_since(self.started)
    }

    /// How long until a device of the domain may be refreshed; `None` if it may be now.
    pub(super) fn wait(&mut self, domid: DomId, time: Duration) -> Option<Duration> {
        self.budget(domid, time).wait(1, time).filter(|wait| !wait.is_zero())
    }

    /// Takes one refresh.
    pub(super) fn take(&mut self, domid: DomId, time: Duration) {
        self.budget(domid, time).take(1, time);
    }

    /// Forgets a domain that has all of its budget, so that forgetting it gives it nothing.
    pub(super) fn forget_rested(&mut self, domid: DomId, time: Duration) {
        if self.left.get_mut(&domid).is_some_and(|budget| budget.take(BURST, time)) {
            self.left.remove(&domid);
        }
    }

    fn budget(&mut self, domid: DomId, time: Duration) -> &mut TokenBucket {
        self.left.entry(domid).or_insert_with(|| TokenBucket::new(RATE, BURST, time))
    }
}
