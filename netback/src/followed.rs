//! Settings of a vif's port that keys of the toolstack say, and that may be rewritten at any time.

use std::fmt::Display;

use bridge::{Flags, Lock, PortSettings, Setting, StormLimits};
use ring_abi::netif::key;
use xenbus::{KeyError, Keys};

use crate::handshake;

/// How one setting is read and told of.
pub(crate) struct Kind {
    /// The keys that say together what it is.
    keys: &'static [&'static str],
    /// What they say. The lock is that of a vif without keys.
    read: fn(&Keys, Lock) -> Result<Setting, KeyError>,
    /// What is in force.
    in_force: fn(&PortSettings) -> &dyn Display,
    /// Logs that it was changed while the vif is connected.
    pub(crate) log: fn(&PortSettings),
    /// It is followed on a wire too. There the key `vlan` is for the script that puts the other end into a bridge.
    pub(crate) is_of_wires: bool,
    /// A vif whose keys have never said anything of it is not connected.
    is_needed: bool,
}

/// All settings, in the order in which they are followed.
static KINDS: [Kind; 6] = [
    Kind {
        keys: &[key::RATE, key::RATE_PACKETS],
        read: |own, _| handshake::rate(own).map(Setting::Rate),
        in_force: |settings| &settings.rate,
        log: |settings| tracing::info!(rate = %settings.rate, "rate limit changed"),
        is_of_wires: true,
        is_needed: false,
    },
    Kind {
        keys: &[key::RATE_IN, key::RATE_IN_PACKETS],
        read: |own, _| handshake::rate_in(own).map(Setting::RateIn),
        in_force: |settings| &settings.rate_in,
        log: |settings| tracing::info!(rate_in = %settings.rate_in, "receiving rate limit changed"),
        is_of_wires: true,
        is_needed: false,
    },
    Kind {
        keys: &[key::LOCK, key::IP],
        read: |own, default| {
            handshake::lock(own, default).map(|(lock, allowed)| Setting::Lock(lock, allowed))
        },
        in_force: |settings| &settings.lock,
        log: |settings| tracing::info!(lock = %settings.lock, ip = %settings.allowed, "lock changed"),
        is_of_wires: true,
        is_needed: true,
    },
    Kind {
        keys: &[key::VLAN],
        read: |own, _| handshake::vlans(own).map(Setting::Vlans),
        in_force: |settings| &settings.vlans,
        log: |settings| tracing::info!(vlans = %settings.vlans, "VLANs changed"),
        is_of_wires: false,
        is_needed: true,
    },
    Kind {
        keys: &Flags::NAMES,
        read: |own, _| handshake::flags(own).map(Setting::Flags),
        in_force: |settings| &settings.flags,
        log: |settings| tracing::info!(flags = %settings.flags, "flags changed"),
        is_of_wires: false,
        is_needed: true,
    },
    Kind {
        keys: &StormLimits::NAMES,
        read: |own, _| handshake::storm(own, StormLimits::GUEST).map(Setting::Storm),
        in_force: |settings| &settings.storm,
        log: |settings| tracing::info!(limits = %settings.storm, "storm limits changed"),
        is_of_wires: false,
        is_needed: true,
    },
];

/// A setting, and what became of the last values of its keys.
pub(crate) struct Followed {
    pub(crate) kind: &'static Kind,
    /// The values that were looked at last; `None` before that.
    values: Option<Vec<Option<String>>>,
    /// Why no values could be read so far.
    error: Option<KeyError>,
}

impl Followed {
    /// All settings.
    pub(crate) fn all() -> Vec<Self> {
        KINDS.iter().map(|kind| Self { kind, values: None, error: None }).collect()
    }

    /// Checks the toolstack's keys before a device is served. Nothing of an earlier process's settings is known here, and a device that is
    /// served without those that cannot be read may do more than it was given: it is refused, or waits if it was served before.
    pub(crate) fn check(own: &Keys, default: Lock) -> Result<(), KeyError> {
        KINDS.iter().try_for_each(|kind| (kind.read)(own, default).map(drop))
    }

    /// What the keys say if their values are new; `None` also if they say nothing, which is logged: what is in force is to stay.
    pub(crate) fn take(&mut self, own: &Keys, default: Lock, settings: &PortSettings) -> Option<Setting> {
        let values = self.kind.keys.iter().map(|key| own.get(key).map(str::to_owned)).collect();
        if self.values.as_ref() == Some(&values) {
            return None;
        }
        let is_first = self.values.replace(values).is_none();
        match (self.kind.read)(own, default) {
            Ok(setting) => {
                self.error = None;
                Some(setting)
            }
            Err(error) => {
                let in_force = (self.kind.in_force)(settings);
                tracing::warn!(%error, %in_force, "failed to read a setting, which stays as it is");
                if is_first || self.error.is_some() {
                    self.error = Some(error);
                }
                None
            }
        }
    }

    /// Why a vif is not to be connected: there are no values that say anything, and none were in force before.
    pub(crate) fn error(&self) -> Option<&KeyError> {
        self.error.as_ref().filter(|_| self.kind.is_needed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What the setting of that key takes of these values, one after the other, and whether it is an error.
    fn taken(key: &str, values: &[&str]) -> Vec<(bool, bool)> {
        let mut all = Followed::all();
        let followed = all.iter_mut().find(|followed| followed.kind.keys.contains(&key)).unwrap();
        let mut take = |value| {
            let own = Keys::new("/b").with(key, value);
            let taken = followed.take(&own, Lock::Off, &PortSettings::default());
            (taken.is_some(), followed.error().is_some())
        };
        values.iter().map(|value| take(*value)).collect()
    }

    #[test]
    fn only_values_that_were_never_read_are_an_error() {
        let (said, nothing, error) = ((true, false), (false, false), (false, true));
        let values = ["x", "x", "10", "10", "y"];
        assert_eq!(taken("vlan", &values), [error, error, said, nothing, nothing]);
        assert_eq!(taken("storm_broadcast", &values), [error, error, said, nothing, nothing]);
        assert_eq!(taken("rate", &["x"]), [nothing], "a rate is not needed");
    }

    #[test]
    fn each_key_says_one_setting() {
        let mut keys: Vec<&str> = KINDS.iter().flat_map(|kind| kind.keys).copied().collect();
        let count = keys.len();
        keys.sort_unstable();
        keys.dedup();
        assert_eq!(keys.len(), count);
    }
}
