//! One device that the control loop knows: how far it is served, and how often its state may be read.

use std::time::{Duration, Instant};

use event_loop::TokenBucket;
use ring_abi::DomId;
use tracing::Span;

use super::target::Id;
use super::{BackDevice, Failure, Released};
use crate::{DeviceEnd, Keys};

/// Refreshes of one device at once (XSA-349); a whole handshake takes about ten.
const REFRESH_BURST: u64 = 50;
/// Refreshes of one device a second after the burst.
const REFRESH_RATE: u64 = 50;
/// Keys of a frontend that cost as much as one more refresh: a guest may have a thousand read each time.
const KEYS_A_REFRESH: usize = 32;

/// One known device.
pub(super) struct Entry {
    pub(super) end: DeviceEnd,
    /// The key `instance` of the device's node.
    pub(super) instance: Option<String>,
    /// Entered around all work for the device.
    pub(super) span: Span,
    refreshes: TokenBucket,
    /// What the next refresh takes of `refreshes`, by the keys that the last one read.
    cost: u64,
    /// When the device was found.
    pub(super) since: Instant,
    /// It was found in a state that another backend had written, which may still serve it.
    pub(super) was_served: bool,
    pub(super) service: Service,
}

/// How far a device is served.
pub(super) enum Service {
    /// Not probed yet.
    New,
    /// Could not be probed for this reason with these keys, and is probed again at this time, or when the keys change.
    Waiting(Failure, Keys, Instant),
    Running(Box<dyn BackDevice>),
    /// Could not be probed with these keys.
    Failed(Keys),
    /// Not wanted any more, and to be Closed once what it used is free.
    Releasing(Released),
    /// Closed and not wanted any more: whatever it was before is dropped.
    Closed,
}

impl Service {
    /// Whether somebody else serves the device, whose nodes are then not written.
    pub(super) fn is_foreign(&self) -> bool {
        matches!(self, Service::Running(device) if device.is_foreign())
    }

    /// Ends a service that is not wanted any more; `false` while what it used is not free.
    pub(super) fn release(&mut self) -> bool {
        let released = match std::mem::replace(self, Service::Closed) {
            Service::Running(device) => device.release(),
            Service::Releasing(released) => Some(released),
            _ => None,
        };
        match released {
            Some(released) if !released() => {
                *self = Service::Releasing(released);
                false
            }
            _ => true,
        }
    }
}

impl Entry {
    /// A device of this kind that was found at `now`; `time` is the same moment, as refreshes are counted.
    pub(super) fn new(end: DeviceEnd, kind: &str, id: Id, now: Instant, time: Duration) -> Entry {
        Entry {
            end,
            instance: None,
            span: device_span(kind, id),
            refreshes: TokenBucket::new(REFRESH_RATE, REFRESH_BURST, time),
            cost: 1,
            since: now,
            was_served: false,
            service: Service::New,
        }
    }

    /// Takes what the next refresh costs, or returns how long until that is there.
    pub(super) fn take_refresh(&mut self, time: Duration) -> Option<Duration> {
        if self.refreshes.take(self.cost, time) {
            return None;
        }
        self.refreshes.wait(self.cost, time)
    }

    /// Records that a refresh has read these keys of the frontend.
    pub(super) fn has_read(&mut self, keys: &Keys) {
        self.cost = (1 + (keys.len() / KEYS_A_REFRESH) as u64).min(REFRESH_BURST);
    }
}

/// The span of a device's log lines, of a level that every filter lets pass.
fn device_span(kind: &str, (DomId(domid), devid): Id) -> Span {
    match kind {
        "vbd" => tracing::error_span!("vbd", domid, devid),
        "vif" => tracing::error_span!("vif", domid, devid),
        _ => tracing::error_span!("device", kind, domid, devid),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn refreshes_are_limited_to_a_burst_and_a_rate() {
        let pace = Duration::from_millis(20);
        let mut refreshes = TokenBucket::new(REFRESH_RATE, REFRESH_BURST, Duration::ZERO);
        for _ in 0..REFRESH_BURST {
            assert!(refreshes.take(1, Duration::ZERO));
        }
        assert!(!refreshes.take(1, Duration::ZERO));
        assert_eq!(refreshes.wait(1, Duration::ZERO), Some(pace));
        assert!(refreshes.take(1, pace));
        assert!(!refreshes.take(1, pace));
        let later = Duration::from_secs(3600);
        let granted = (0..1000).filter(|_| refreshes.take(1, later)).count();
        assert_eq!(granted as u64, REFRESH_BURST);
    }
}
