//! A machine in threads: a broker and a store, and what a toolstack does to them.

use crate::BOUND;
use hypervisor::DomId;
use hypervisor::local::{Domain, DomainEvent, Sandbox};
use ring_abi::netif::Mac;
use std::sync::Arc;
use std::time::Instant;
use toolstack::config::{DiskSpec, VifSpec};
use toolstack::machine::{device, vbd, vif};
use xenbus::Device;
use xenbus::XenbusState;
use xenstore::server::{Config, Store};
use xenstore::{Client, Nodes};

/// Broker, store and the domains that join them, until it is dropped.
pub struct Machine {
    // The broker goes first: it calls the store.
    /// The broker, and where it listens.
    pub sandbox: Sandbox,
    /// The store's server.
    pub store: Store,
}

impl Machine {
    /// A machine without devices, whose test prints what drivers log.
    #[allow(clippy::new_without_default)] // It starts threads.
    pub fn new() -> Machine {
        let log = tracing_subscriber::fmt().with_test_writer().with_env_filter("info");
        // Another test of this program may have been first.
        let _ = log.try_init();
        Machine::without_log()
    }

    /// A machine without devices, for benchmarks: what drivers log goes nowhere.
    pub fn without_log() -> Machine {
        let store = Store::spawn(Config::default()).unwrap();
        let handle = store.handle();
        let sandbox = Sandbox::with_store(Box::new(move |event| {
            let told = match event {
                DomainEvent::Connect { domid: DomId(0), stream } => handle.connect(stream),
                DomainEvent::Connect { domid, stream } => handle.introduce(domid, stream),
                // Refused for a domain that never opened the store.
                DomainEvent::Exited { domid } => {
                    let _ = handle.release(domid);
                    Ok(())
                }
            };
            if let Err(error) = told {
                eprintln!("the store: {error}");
            }
        }))
        .unwrap();
        Machine { sandbox, store }
    }

    /// Joins as a domain, which is made if it is not there.
    pub fn domain(&self, domid: DomId) -> Arc<Domain> {
        self.sandbox.join(domid).unwrap()
    }

    /// Dom0's connection to the store, for the toolstack's part.
    pub fn client(&self) -> Client {
        let mut client = self.store.client().unwrap();
        client.set_reply_timeout(Some(BOUND));
        client
    }

    /// Attaches a writable disk over what `target` names: an image, or an engine as in `ram:1048576`.
    pub fn attach_disk(&self, domid: DomId, devid: u32, target: &str) -> Device {
        self.attach_disk_as(domid, &crate::block::disk(devid, target))
    }

    /// Attaches a disk, with the nodes that libxl writes.
    pub fn attach_disk_as(&self, domid: DomId, disk: &DiskSpec) -> Device {
        self.attach(vbd::nodes(domid, disk))
    }

    /// Attaches an interface as libxl does by default, with the address 00:16:3e:00:`domid`:`devid`.
    pub fn attach_vif(&self, domid: DomId, devid: u32) -> Device {
        self.attach_vif_as(domid, devid, &crate::net::vif())
    }

    /// Attaches an interface, with the nodes that libxl writes.
    pub fn attach_vif_as(&self, domid: DomId, devid: u32, spec: &VifSpec) -> Device {
        let mac = Mac::xen([0, domid.0 as u8, devid as u8]);
        self.attach(vif::nodes(domid, spec, devid, spec.mac.unwrap_or(mac)))
    }

    fn attach(&self, new: device::NewDevice) -> Device {
        device::add(&mut self.client(), &new).unwrap();
        new.device
    }

    /// Asks the backend to close, as libxl does.
    pub fn detach(&self, device: &Device) {
        assert!(device::request_close(&mut self.client(), device).unwrap(), "{} is gone", device.back_path());
    }

    /// Removes a device's nodes, as libxl does.
    pub fn remove(&self, device: &Device) {
        device::remove(&mut self.client(), device).unwrap();
    }

    /// What a device's backend said went wrong, if it did.
    pub fn backend_error(&self, device: &Device) -> Option<String> {
        let path = format!("{}/error", device::error_path(&device.back_path()));
        let text = self.client().read_opt(&path).unwrap()?;
        Some(String::from_utf8(text).unwrap())
    }

    /// The state in the store of one end of a device.
    pub fn state(&self, path: &str) -> XenbusState {
        state(&mut self.client(), path)
    }

    /// Waits until this is the state of one end of a device.
    pub fn wait_for_state(&self, path: &str, wanted: XenbusState) {
        self.wait_for(&format!("{path} {wanted}"), |client| state(client, path) == wanted);
    }

    /// Waits for what the store says, woken by any change below `/local`.
    pub fn wait_for(&self, what: &str, mut is: impl FnMut(&mut Client) -> bool) {
        let mut client = self.client();
        client.watch("/local", "any").unwrap();
        let deadline = Instant::now() + BOUND;
        while !is(&mut client) {
            let left = deadline.saturating_duration_since(Instant::now());
            assert!(!left.is_zero(), "never: {what}");
            let _ = client.wait_event(Some(left)).unwrap();
        }
    }
}

fn state(client: &mut Client, path: &str) -> XenbusState {
    client.read_opt_as(&format!("{path}/state")).unwrap().unwrap_or(XenbusState::Unknown)
}
