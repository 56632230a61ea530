//! The ports of a driver's vifs, for other threads to find.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bridge::Bridge;
use ring_abi::DomId;

/// The port of a connected vif.
#[derive(Clone, Debug)]
pub struct VifPort {
    /// Its bridge.
    pub bridge: Arc<Bridge>,
    /// Its name there.
    pub name: String,
}

/// The ports of all connected vifs of a driver, by domain and number.
#[derive(Clone, Debug, Default)]
pub struct Ports(Arc<Mutex<BTreeMap<(DomId, u32), VifPort>>>);

impl Ports {
    /// The port of a vif; `None` while it is not connected.
    pub fn find(&self, domid: DomId, devid: u32) -> Option<VifPort> {
        self.lock().get(&(domid, devid)).cloned()
    }

    /// The domains and numbers of the vifs whose ports a bridge has, by the ports' names.
    pub fn of_bridge(&self, bridge: &Bridge) -> BTreeMap<String, (u16, u32)> {
        let all = self.lock();
        let own = all.iter().filter(|(_, port)| std::ptr::eq(&*port.bridge, bridge));
        own.map(|((domid, devid), port)| (port.name.clone(), (domid.0, *devid))).collect()
    }

    pub(crate) fn add(&self, domid: DomId, devid: u32, port: VifPort) {
        self.lock().insert((domid, devid), port);
    }

    pub(crate) fn remove(&self, domid: DomId, devid: u32) {
        // Its bridge may end with it, which takes a while: not under the lock.
        let removed = self.lock().remove(&(domid, devid));
        drop(removed);
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<(DomId, u32), VifPort>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
