//! Gives devices the keys of a policy, as if their toolstack had written them: from the first look at a device on, so that none is
//! offered without its limits. A key that the store has counts instead. Another policy that is put in force gives connected devices its
//! keys, and takes those of the earlier one away.

use std::sync::Arc;

use event_loop::Connector;
use xenbus::Device;
use xenbus::Keys;
use xenbus::driver::{BackDevice, BackDriver, DeviceState, Failure, Released, Update, Waker};
use xenbus::stats::Stats;
use xenstore::{Client, DomId, Nodes, XsError};

use super::policy_in_force::{Following, PolicyInForce};
use crate::config::policy::DomainNames;
use crate::error::Result;

/// What xl appends to the name of a domain while it arrives by a migration, at whose end it is renamed.
const INCOMING: &str = "--incoming";

/// A driver whose devices have the keys of a policy.
pub struct Governed<D> {
    driver: D,
    /// `None` where there is no policy, nor will be.
    governing: Option<Governing>,
}

struct Governing {
    policy: PolicyInForce,
    store: Store,
}

struct Store {
    connector: Arc<dyn Connector>,
    client: Client,
}

impl<D: BackDriver> Governed<D> {
    /// Wraps `driver`. `connector` leads to the store, where the domains' names are read.
    ///
    /// # Errors
    /// The store cannot be connected.
    pub fn new(
        driver: D,
        policy: Option<PolicyInForce>,
        connector: Arc<dyn Connector>,
    ) -> Result<Governed<D>> {
        let governing = match policy {
            None => None,
            Some(policy) => {
                let store = Store { client: Client::connect(&connector)?, connector };
                Some(Governing { policy, store })
            }
        };
        Ok(Governed { driver, governing })
    }
}

impl Store {
    /// Connects again if the connection was lost.
    fn reconnect(&mut self) {
        // Nothing is watched: there is an event only of a connection that is closed.
        if self.client.poll_event().is_err_and(|error| error.is_disconnected())
            && let Ok(client) = Client::connect(&self.connector)
        {
            self.client = client;
        }
    }

    /// What a domain is called.
    fn names(&mut self, domid: DomId) -> xenstore::client::Result<DomainNames> {
        self.reconnect();
        let home = format!("/local/domain/{domid}");
        let name = self.readable(&format!("{home}/name"))?;
        let vm = self.readable(&format!("{home}/vm"))?;
        Ok(DomainNames {
            name: name.map(|name| name.strip_suffix(INCOMING).unwrap_or(&name).to_owned()),
            uuid: vm.and_then(|vm| Some(vm.strip_prefix("/vm/")?.to_owned())),
        })
    }

    /// A node's value; `None` if it does not exist, or this domain may not read it.
    fn readable(&mut self, path: &str) -> xenstore::client::Result<Option<String>> {
        match self.client.read_text(path) {
            Err(e) if matches!(e.store_error(), Some(XsError::ENOENT | XsError::EACCES)) => Ok(None),
            value => value.map(Some),
        }
    }
}

impl<D: BackDriver> BackDriver for Governed<D> {
    fn kind(&self) -> &str {
        self.driver.kind()
    }

    fn frontend_keys(&self) -> &'static [&'static str] {
        self.driver.frontend_keys()
    }

    fn probe(
        &mut self,
        device: &Device,
        seen: &DeviceState,
        waker: Waker,
    ) -> std::result::Result<Box<dyn BackDevice>, Failure> {
        let Some(Governing { policy, store }) = &mut self.governing else {
            return self.driver.probe(device, seen, waker);
        };
        let names = store.names(device.front).map_err(Failure::in_use_for_now)?;
        // From here on it is woken with each other policy.
        let policy = policy.follow(waker.clone());
        let (version, rules) = policy.current();
        let keys = rules.keys(device, &names, &seen.own);
        let governed = self.driver.probe(device, &with(&keys, seen), waker)?;
        let device = device.clone();
        Ok(Box::new(GovernedDevice { governed, device, names, policy, version, keys }))
    }
}

/// The device as its driver is to see it.
fn with(keys: &Keys, seen: &DeviceState) -> DeviceState {
    let mut seen = seen.clone();
    for (name, value) in keys.iter() {
        if seen.own.get(name).is_none() {
            seen.own.set(name, value);
        }
    }
    seen
}

struct GovernedDevice {
    governed: Box<dyn BackDevice>,
    device: Device,
    names: DomainNames,
    policy: Following,
    /// Which policy `keys` are of.
    version: u64,
    keys: Keys,
}

impl BackDevice for GovernedDevice {
    fn changed(&mut self, seen: &DeviceState) -> Update {
        let (version, rules) = self.policy.current();
        if version != self.version {
            self.version = version;
            self.keys = rules.keys(&self.device, &self.names, &seen.own);
        }
        self.governed.changed(&with(&self.keys, seen))
    }

    fn stats(&self) -> Option<Arc<dyn Stats>> {
        self.governed.stats()
    }

    fn is_foreign(&self) -> bool {
        self.governed.is_foreign()
    }

    fn release(self: Box<Self>) -> Option<Released> {
        self.governed.release()
    }

    fn stop(&mut self) {
        self.governed.stop();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn key_of_the_store_counts_instead_of_the_policys() {
        let keys = Keys::default().with("iops-total", 5).with("bps-read", 7);
        let seen = DeviceState {
            own: Keys::new("/b").with("iops-total", 0).with("mode", "w"),
            ..DeviceState::default()
        };
        let own = with(&keys, &seen).own;
        assert_eq!(own.iter().collect::<Vec<_>>(), [("bps-read", "7"), ("iops-total", "0"), ("mode", "w")]);
        assert_eq!(own.path(), "/b");
    }
}
