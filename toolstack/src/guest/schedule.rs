//! Which devices are to be served, as a value: nodes, states and ended services in; starts, stops and reports out.
//!
//! A device's number may be another device's a moment later. Its node's generation tells them apart: the store sends an
//! event for the node itself when it is made or removed, and at no other time.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use xenbus::XenbusState;

/// A device's kind and number.
pub type Id = (&'static str, u32);

/// The kinds of devices that a guest serves.
pub const KINDS: [&str; 2] = ["vbd", "vif"];

/// The pause before a service that failed once is started again. It doubles with each failure.
const FIRST_PAUSE: Duration = Duration::from_millis(100);
/// The longest pause.
const LONGEST_PAUSE: Duration = Duration::from_secs(30);

/// The devices, and how their services fared.
#[derive(Debug, Default)]
pub struct Schedule {
    /// Whether devices that an earlier process has served are served too.
    takes_over: bool,
    generations: BTreeMap<Id, u64>,
    devices: BTreeMap<Id, Device>,
}

#[derive(Debug)]
struct Device {
    /// The generation that is or was served.
    generation: u64,
    service: Service,
    failures: u32,
    /// The last failure's text.
    failure: String,
    retry: Option<Instant>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Service {
    Running,
    Stopping,
    Ended,
}

/// What to do.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Actions {
    /// Services to stop.
    pub stop: Vec<Id>,
    /// Services to start.
    pub start: Vec<Id>,
}

/// What to do about a failure.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Report {
    /// Nothing: the device was removed.
    Nothing,
    /// Its state is to be written.
    State,
    /// Likewise, and the error is to be logged and written, as it is a new one.
    Error,
}

impl Schedule {
    /// Creates a schedule without devices. `takes_over`: see [`Schedule::actions`].
    pub fn new(takes_over: bool) -> Schedule {
        Schedule { takes_over, ..Schedule::default() }
    }

    /// Takes an event of a watch on `device`, e.g. `device/vbd/51712/state`.
    pub fn event(&mut self, path: &str) {
        let mut parts = path.split('/');
        if let (Some("device"), Some(kind), Some(number), None) =
            (parts.next(), parts.next(), parts.next(), parts.next())
            && let Some(kind) = KINDS.into_iter().find(|known| *known == kind)
            && let Ok(number) = number.parse()
        {
            *self.generations.entry((kind, number)).or_default() += 1;
        }
    }

    /// Takes the end of a service, with the text of its error if it failed.
    pub fn ended(&mut self, id: Id, failure: Option<&str>, now: Instant) -> Report {
        let current = self.generation(id);
        let Some(device) = self.devices.get_mut(&id) else { return Report::Nothing };
        let was_stopped = device.service == Service::Stopping || device.generation != current;
        device.service = Service::Ended;
        let Some(failure) = failure.filter(|_| !was_stopped) else {
            device.failures = 0;
            device.retry = None;
            return Report::Nothing;
        };
        let pause = FIRST_PAUSE.saturating_mul(1 << device.failures.min(16)).min(LONGEST_PAUSE);
        device.failures += 1;
        device.retry = Some(now + pause);
        if device.failure == failure {
            return Report::State;
        }
        failure.clone_into(&mut device.failure);
        Report::Error
    }

    /// Takes the devices that exist and their frontends' states, read after all events and ended services were taken.
    ///
    /// A service is started for a device that was not served before, or failed; not for one that was served and closed,
    /// nor, unless `takes_over`, for one that an earlier process has served.
    pub fn actions(&mut self, found: &BTreeMap<Id, XenbusState>, now: Instant) -> Actions {
        let mut actions = Actions::default();
        for (id, device) in &mut self.devices {
            let current = self.generations.get(id).copied().unwrap_or_default();
            let is_removed = !found.contains_key(id) || device.generation != current;
            if is_removed && device.service == Service::Running {
                device.service = Service::Stopping;
                actions.stop.push(*id);
            }
        }
        // A service that runs on may still write to the node that follows: its device is remembered until it ends.
        self.devices.retain(|id, device| found.contains_key(id) || device.service != Service::Ended);
        self.generations.retain(|id, _| found.contains_key(id) || self.devices.contains_key(id));
        for (id, state) in found {
            if self.is_due(*id, *state, now) {
                actions.start.push(*id);
                self.start(*id);
            }
        }
        for device in self.devices.values_mut() {
            device.retry = device.retry.filter(|retry| *retry > now);
        }
        actions
    }

    /// Whether a service is to be started now.
    fn is_due(&self, id: Id, state: XenbusState, now: Instant) -> bool {
        let is_untouched = state == XenbusState::Initialising;
        match self.devices.get(&id) {
            None => is_untouched || self.takes_over,
            Some(device) if device.service != Service::Ended => false,
            // Whatever its state is: the service of the device before it may have written to its node.
            Some(device) if device.generation != self.generation(id) => true,
            Some(device) => is_untouched && device.retry.is_none_or(|retry| now >= retry),
        }
    }

    fn start(&mut self, id: Id) {
        let generation = self.generation(id);
        let device = self.devices.entry(id).or_insert_with(|| Device::new(generation));
        if device.generation != generation {
            *device = Device::new(generation);
        }
        device.service = Service::Running;
        device.retry = None;
    }

    fn generation(&self, id: Id) -> u64 {
        self.generations.get(&id).copied().unwrap_or_default()
    }

    /// When the next service that failed is to be started again.
    pub fn next_retry(&self) -> Option<Instant> {
        self.devices.values().filter_map(|device| device.retry).min()
    }
}

impl Device {
    fn new(generation: u64) -> Device {
        let failure = String::new();
        Device { generation, service: Service::Running, failures: 0, failure, retry: None }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use XenbusState::{Closed, Connected, Initialising};

    const DISK: Id = ("vbd", 51712);
    const NODE: &str = "device/vbd/51712";

    fn found(state: XenbusState) -> BTreeMap<Id, XenbusState> {
        BTreeMap::from([(DISK, state)])
    }

    fn start() -> Actions {
        Actions { start: vec![DISK], stop: Vec::new() }
    }

    fn stop() -> Actions {
        Actions { start: Vec::new(), stop: vec![DISK] }
    }

    /// A schedule with a disk that is served.
    fn served(now: Instant) -> Schedule {
        let mut schedule = Schedule::new(false);
        schedule.event(NODE);
        schedule.event("device/vbd/51712/state");
        assert_eq!(schedule.actions(&found(Initialising), now), start());
        assert_eq!(schedule.actions(&found(Connected), now), Actions::default());
        schedule
    }

    #[test]
    fn service_that_fails_is_started_again_after_growing_pauses_and_reported_once() {
        let mut now = Instant::now();
        let mut schedule = served(now);
        let mut starts = 0;
        let mut reports = Vec::new();
        let end = now + Duration::from_secs(600);
        while now < end {
            reports.push(schedule.ended(DISK, Some("no space"), now));
            assert_eq!(schedule.actions(&found(Initialising), now), Actions::default());
            now = schedule.next_retry().unwrap();
            assert_eq!(schedule.actions(&found(Initialising), now), start());
            assert_eq!(schedule.next_retry(), None);
            starts += 1;
        }
        assert!((25..35).contains(&starts), "{starts} starts");
        assert_eq!(reports[..2], [Report::Error, Report::State]);
        assert!(reports[1..].iter().all(|report| *report == Report::State));
        assert_eq!(schedule.ended(DISK, Some("another"), now), Report::Error);
    }

    #[test]
    fn device_that_failed_and_is_closing_needs_no_timer() {
        let now = Instant::now();
        let mut schedule = served(now);
        schedule.ended(DISK, Some("no space"), now);
        let later = schedule.next_retry().unwrap();
        assert_eq!(schedule.actions(&found(XenbusState::Closing), later), Actions::default());
        assert_eq!(schedule.next_retry(), None);
    }

    #[test]
    fn device_that_was_closed_is_not_served_again() {
        let now = Instant::now();
        let mut schedule = served(now);
        assert_eq!(schedule.ended(DISK, None, now), Report::Nothing);
        assert_eq!(schedule.actions(&found(Closed), now), Actions::default());
    }

    #[test]
    fn node_that_is_made_anew_is_served_in_whatever_state_the_old_service_leaves_it() {
        for seen_absent in [false, true] {
            let now = Instant::now();
            let mut schedule = served(now);
            schedule.event(NODE);
            if seen_absent {
                assert_eq!(schedule.actions(&BTreeMap::new(), now), stop());
                schedule.event(NODE);
                assert_eq!(schedule.actions(&found(Initialising), now), Actions::default());
            } else {
                assert_eq!(schedule.actions(&found(Initialising), now), stop());
            }
            assert_eq!(schedule.ended(DISK, Some("removed"), now), Report::Nothing);
            assert_eq!(schedule.actions(&found(Closed), now), start());
        }
    }

    #[test]
    fn removed_device_is_forgotten_once_its_service_has_ended() {
        let now = Instant::now();
        let mut schedule = served(now);
        schedule.event(NODE);
        assert_eq!(schedule.actions(&BTreeMap::new(), now), stop());
        schedule.ended(DISK, None, now);
        assert_eq!(schedule.actions(&BTreeMap::new(), now), Actions::default());
        assert!(schedule.devices.is_empty() && schedule.generations.is_empty());
        schedule.event(NODE);
        assert_eq!(schedule.actions(&found(Closed), now), Actions::default());
        assert_eq!(schedule.actions(&found(Initialising), now), start());
    }

    #[test]
    fn device_of_an_earlier_process_is_served_only_if_it_is_to_be_taken_over() {
        for takes_over in [false, true] {
            let mut schedule = Schedule::new(takes_over);
            let actions = schedule.actions(&found(Connected), Instant::now());
            assert_eq!(actions, if takes_over { start() } else { Actions::default() });
        }
    }
}
