//! A device from the frontend's side, on any hypervisor: store keys and states, with the rights of the frontend's domain.

use crate::BOUND;
use hypervisor::Hypervisor;
use hypervisor::xen::Xen;
use ring_abi::xenbus::key;
use std::sync::Arc;
use std::time::Instant;
use xenbus::{Device, DeviceEnd, XenbusState};
use xenstore::{Client, Nodes};

/// A device and the domain of its frontend.
#[derive(Clone)]
pub struct FrontendDevice {
    /// The frontend's domain.
    pub hv: Arc<dyn Hypervisor>,
    /// The device.
    pub device: Device,
}

impl FrontendDevice {
    /// Makes the frontend's side of a device of this domain.
    pub fn new(hv: Arc<dyn Hypervisor>, device: Device) -> FrontendDevice {
        FrontendDevice { hv, device }
    }

    /// Finds the devices, of this guest of a real Xen host, whose numbers an environment variable lists as in `0/1/2`.
    ///
    /// # Panics
    /// If the variable is not set, or Xen's device nodes are missing.
    pub fn of_xen_guest(kind: &str, variable: &str) -> Vec<FrontendDevice> {
        let ids = std::env::var(variable).unwrap_or_else(|e| panic!("{variable}: {e}"));
        let hv: Arc<dyn Hypervisor> = Arc::new(Xen::open().expect("the device nodes"));
        let device = |id: &str| Device::new(kind, hv.domid(), id.parse().expect("a device's number"));
        ids.split('/').map(|id| FrontendDevice::new(hv.clone(), device(id))).collect()
    }

    /// Opens a connection to the store as the frontend's domain.
    pub fn store(&self) -> Client {
        Client::connect(&self.hv).unwrap()
    }

    /// The frontend's end of the device.
    pub fn end(&self) -> DeviceEnd {
        DeviceEnd::front(&self.device)
    }

    /// Writes a key in the frontend's directory.
    pub fn set(&self, key: &str, value: impl ToString) {
        let path = format!("{}/{key}", self.device.front_path());
        self.store().write(&path, value.to_string()).unwrap();
    }

    /// Removes a key from the frontend's directory.
    pub fn remove(&self, key: &str) {
        self.store().rm(&format!("{}/{key}", self.device.front_path())).unwrap();
    }

    /// Writes the frontend's state, unless it is the present one.
    pub fn switch(&self, state: XenbusState) {
        self.end().switch_state(&mut self.store(), state).unwrap();
    }

    /// Reads the backend's state.
    pub fn backend_state(&self) -> XenbusState {
        self.end().other_state(&mut self.store()).unwrap()
    }

    /// Waits until the backend's state is `state`.
    pub fn wait_for_backend(&self, state: XenbusState) {
        let mut store = self.store();
        let end = self.end();
        end.watch_other(&mut store, key::STATE).unwrap();
        let deadline = Instant::now() + BOUND;
        while end.other_state(&mut store).unwrap() != state {
            let left = deadline.saturating_duration_since(Instant::now());
            assert!(!left.is_zero(), "{} is not {state} within {BOUND:?}", self.device.back_path());
            let _ = store.wait_event(Some(left)).unwrap();
        }
    }

    /// Closes the device, unless its backend is closed or waits for a frontend.
    pub fn close(&self) {
        if ![XenbusState::InitWait, XenbusState::Closed].contains(&self.backend_state()) {
            self.switch(XenbusState::Closed);
            self.wait_for_backend(XenbusState::Closed);
        }
    }
}
