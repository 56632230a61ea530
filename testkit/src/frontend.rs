//! A device as its frontend's domain sees it, over any hypervisor.

use crate::BOUND;
use hypervisor::Hypervisor;
use hypervisor::xen::Xen;
use std::sync::Arc;
use std::time::Instant;
use xenbus::XenbusState;
use xenbus::{Device, DeviceEnd};
use xenstore::{Client, Nodes};

/// A device, and its frontend's domain with that domain's rights.
#[derive(Clone)]
pub struct FrontendDevice {
    /// The frontend's domain.
    pub hv: Arc<dyn Hypervisor>,
    /// The device.
    pub device: Device,
}

impl FrontendDevice {
    /// A device of this domain.
    pub fn new(hv: Arc<dyn Hypervisor>, device: Device) -> FrontendDevice {
        FrontendDevice { hv, device }
    }

    /// The devices of this guest of a real Xen host that an environment variable names, `0/1/2`.
    ///
    /// # Panics
    /// Where the variable is not set or Xen's device nodes are missing.
    pub fn of_xen_guest(kind: &str, variable: &str) -> Vec<FrontendDevice> {
        let named = std::env::var(variable).unwrap_or_else(|e| panic!("{variable}: {e}"));
        let hv: Arc<dyn Hypervisor> = Arc::new(Xen::open().expect("the device nodes"));
        let device = |id: &str| Device::new(kind, hv.domid(), id.parse().expect("a device's number"));
        named.split('/').map(|id| FrontendDevice::new(hv.clone(), device(id))).collect()
    }

    /// A connection to the store.
    pub fn store(&self) -> Client {
        Client::new(self.hv.store().unwrap())
    }

    /// The frontend's end.
    pub fn end(&self) -> DeviceEnd {
        DeviceEnd::front(&self.device)
    }

    /// Writes a key of the frontend's.
    pub fn set(&self, key: &str, value: impl ToString) {
        let path = format!("{}/{key}", self.device.front_path());
        self.store().write(&path, value.to_string()).unwrap();
    }

    /// Removes a key of the frontend's.
    pub fn remove(&self, key: &str) {
        self.store().rm(&format!("{}/{key}", self.device.front_path())).unwrap();
    }

    /// Writes the frontend's state.
    pub fn switch(&self, state: XenbusState) {
        self.end().switch_state(&mut self.store(), state).unwrap();
    }

    /// The backend's state.
    pub fn backend_state(&self) -> XenbusState {
        self.end().other_state(&mut self.store()).unwrap()
    }

    /// Waits for the backend's state.
    pub fn wait_for_backend(&self, state: XenbusState) {
        let (mut store, end) = (self.store(), self.end());
        store.watch(&format!("{}/state", self.device.back_path()), "state").unwrap();
        let deadline = Instant::now() + BOUND;
        while end.other_state(&mut store).unwrap() != state {
            let left = deadline.saturating_duration_since(Instant::now());
            assert!(!left.is_zero(), "never: {} {state}", self.device.back_path());
            let _ = store.wait_event(Some(left)).unwrap();
        }
    }

    /// Closes the device, unless it is closed or waits for a frontend.
    pub fn close(&self) {
        if ![XenbusState::InitWait, XenbusState::Closed].contains(&self.backend_state()) {
            self.switch(XenbusState::Closed);
            self.wait_for_backend(XenbusState::Closed);
        }
    }
}
