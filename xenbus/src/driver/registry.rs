//! The devices that a driver serves, for other threads to read: their counters, and why one is not served.
//!
//! The control loop inserts a device when it is found and removes it with its node. Nothing of it is on a data path.

use alloc::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use event_loop::LongestTurn;
use ring_abi::DomId;

use crate::error_node::shortened;
use crate::stats::Stats;

/// The devices of one kind, by the frontend's domain and the device's number. Clones share them.
#[derive(Clone, Default)]
pub struct Registry {
    devices: Arc<Mutex<BTreeMap<(DomId, u32), Info>>>,
    longest_turn: LongestTurn,
}

/// What is known of a device.
#[derive(Clone, Default)]
pub struct Info {
    /// The device's counters; `None` while it is not served, or if they are another program's.
    pub stats: Option<Arc<dyn Stats>>,
    /// Why it is not served yet, or why its last connection was closed.
    pub error: Option<String>,
}

impl Registry {
    /// The longest turn of the control loop so far, by its thread's processor time.
    pub fn longest_turn(&self) -> LongestTurn {
        self.longest_turn.clone()
    }

    /// The device of this frontend's domain and number.
    pub fn get(&self, id: (DomId, u32)) -> Option<Info> {
        self.lock().get(&id).cloned()
    }

    /// The first `most` devices behind `after`, or the first ones, in the order of their domains and numbers.
    pub fn list(&self, after: Option<(DomId, u32)>, most: usize) -> Vec<((DomId, u32), Info)> {
        use std::ops::Bound::{Excluded, Unbounded};
        let start = after.map_or(Unbounded, Excluded);
        self.lock().range((start, Unbounded)).take(most).map(|(id, info)| (*id, info.clone())).collect()
    }

    /// The devices of a frontend's domain.
    pub fn of_domain(&self, domid: DomId) -> Vec<Info> {
        self.lock().range((domid, 0)..=(domid, u32::MAX)).map(|(_, info)| info.clone()).collect()
    }

    /// Inserts a device that is served from now on; it has no error.
    pub fn insert(&self, id: (DomId, u32), stats: Option<Arc<dyn Stats>>) {
        self.lock().insert(id, Info { stats, error: None });
    }

    /// Sets or clears the error of a device, whether it is served or not.
    pub fn set_error(&self, id: (DomId, u32), error: Option<&str>) {
        self.lock().entry(id).or_default().error = error.map(|error| shortened(error).to_owned());
    }

    /// Removes a device.
    pub fn remove(&self, id: (DomId, u32)) {
        self.lock().remove(&id);
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<(DomId, u32), Info>> {
        self.devices.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error_node::MAX_ERROR;
    use crate::stats::Snapshot;

    struct Nothing;

    impl Stats for Nothing {
        fn snapshot(&self) -> Snapshot {
            Snapshot::default()
        }
    }

    #[test]
    fn list_continues_behind_a_device_that_is_removed_meanwhile() {
        let registry = Registry::default();
        let ids = [(DomId(1), 5), (DomId(1), 9), (DomId(2), 0), (DomId(7), 1)];
        ids.iter().rev().for_each(|id| registry.insert(*id, Some(Arc::new(Nothing))));
        let listed = |after, most| -> Vec<_> {
            registry.list(after, most).into_iter().map(|(id, info)| (id, info.stats.is_some())).collect()
        };
        assert_eq!(listed(None, 2), [(ids[0], true), (ids[1], true)]);
        registry.remove(ids[1]);
        assert_eq!(listed(Some(ids[1]), 9), [(ids[2], true), (ids[3], true)]);
        assert!(listed(Some(ids[3]), 9).is_empty());
    }

    #[test]
    fn error_of_a_device_is_shortened_and_cleared_once_it_is_served() {
        let registry = Registry::default();
        let id = (DomId(1), 0);
        registry.set_error(id, Some(&"\u{e9}".repeat(5000)));
        let info = registry.get(id).unwrap();
        assert!(info.stats.is_none() && info.error.is_some_and(|error| error.len() == MAX_ERROR));
        registry.insert(id, None);
        assert_eq!(registry.get(id).unwrap().error, None);
    }
}
