//! Gives devices the keys of a policy, as if their toolstack had written them: from the first look at a device on, so that none is
//! offered without its limits. A key that the store has counts instead.

use std::sync::Arc;

use event_loop::Connector;
use xenbus::Device;
use xenbus::Keys;
use xenbus::driver::{BackDevice, BackDriver, DeviceState, Failure, Update, Waker};
use xenbus::stats::Stats;
use xenstore::{Client, DomId, Nodes, XsError};

use crate::config::policy::{DomainNames, Policy};
use crate::error::Result;

/// What xl appends to the name of a domain while it arrives by a migration, at whose end it is renamed.
const INCOMING: &str = "--incoming";

/// A driver whose devices have the keys of a policy.
pub struct Governed<D> {
    driver: D,
    policy: Policy,
    /// `None` where there is no policy.
    store: Option<Store>,
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
    pub fn new(driver: D, policy: Policy, connector: Arc<dyn Connector>) -> Result<Governed<D>> {
        let store = match policy.is_empty() {
            true => None,
            false => Some(Store { client: Client::connect(&connector)?, connector }),
        };
        Ok(Governed { driver, policy, store })
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
        let Some(store) = &mut self.store else { return self.driver.probe(device, seen, waker) };
        let names = store.names(device.front).map_err(Failure::in_use_for_now)?;
        let keys = self.policy.keys(device, &names, &seen.own);
        let governed = self.driver.probe(device, &with(&keys, seen), waker)?;
        Ok(Box::new(GovernedDevice { device: governed, keys }))
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
    device: Box<dyn BackDevice>,
    /// The policy's.
    keys: Keys,
}

impl BackDevice for GovernedDevice {
    fn changed(&mut self, seen: &DeviceState) -> Update {
        self.device.changed(&with(&self.keys, seen))
    }

    fn stats(&self) -> Option<Arc<dyn Stats>> {
        self.device.stats()
    }

    fn is_foreign(&self) -> bool {
        self.device.is_foreign()
    }

    fn stop(&mut self) {
        self.device.stop();
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
