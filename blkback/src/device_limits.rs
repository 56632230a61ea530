//! The limits of one device as its keys and those of its group's other disks say them.

use std::sync::Arc;
use std::time::Instant;

use ring_abi::blkif::key;
use xenbus::stats::Limits;
use xenbus::{KeyError, Keys};

use crate::throttle::limits::group;
use crate::throttle::{IoLimits, Membership, Throttle};

/// What a device's limits were made of last, and what is in force.
pub(crate) struct DeviceLimits {
    membership: Membership,
    /// The values of the keys that were looked at last.
    keys: Vec<Option<String>>,
    group: Option<String>,
    throttle: Option<Arc<Throttle>>,
}

impl DeviceLimits {
    /// No limits yet, of a device with this place in a group.
    pub(crate) fn new(membership: Membership) -> DeviceLimits {
        DeviceLimits { membership, keys: Vec::new(), group: None, throttle: None }
    }

    /// Checks the toolstack's keys before a device is served: no limits are known to stay as they are where these cannot be read, and a
    /// device without any may take more than it was given.
    ///
    /// # Errors
    /// A value cannot be read.
    pub(crate) fn check(own: &Keys) -> Result<(), KeyError> {
        group(own)?;
        IoLimits::from_keys(own).map(drop)
    }

    /// The limits in force.
    pub(crate) fn throttle(&self) -> Option<&Arc<Throttle>> {
        self.throttle.as_ref()
    }

    /// The limits in force, for others to read.
    pub(crate) fn in_force(&self) -> Limits {
        let values = self.throttle.as_ref().map(|throttle| throttle.limits().entries());
        Limits { values: values.unwrap_or_default(), group: self.group.clone() }
    }

    /// Follows the toolstack's keys, and the limits of the group; `true` if others are in force now. Where a key has a value that
    /// cannot be read, all of the device's own limits stay as they are.
    pub(crate) fn follow(&mut self, own: &Keys, now: Instant) -> bool {
        let names = key::LIMITS.iter().flatten().chain([&key::IOPS_SIZE, &key::THROTTLE_GROUP]);
        let keys: Vec<_> = names.map(|name| own.get(name).map(str::to_owned)).collect();
        let mut group_changed = false;
        if keys != self.keys {
            self.keys = keys;
            match self.read(own) {
                Ok(changed) => group_changed = changed,
                Err(error) => tracing::warn!(%error, "failed to read the limits, which stay as they are"),
            }
        }
        let throttle = self.membership.throttle(now);
        if throttle.as_ref().map(Arc::as_ptr) == self.throttle.as_ref().map(Arc::as_ptr) {
            return group_changed;
        }
        self.throttle = throttle;
        let limits = self.throttle.as_ref().map_or(IoLimits::default(), |throttle| *throttle.limits());
        tracing::info!(%limits, group = self.group, "limits changed");
        true
    }

    /// Reads the keys; `true` if they name another group than before.
    fn read(&mut self, own: &Keys) -> Result<bool, KeyError> {
        let group = group(own)?;
        self.membership.set(group, IoLimits::from_keys(own)?);
        let group = group.map(str::to_owned);
        Ok(std::mem::replace(&mut self.group, group.clone()) != group)
    }
}
