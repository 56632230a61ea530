//! A machine in threads: a broker and a store, and a toolstack's operations on them.

use crate::BOUND;
use hypervisor::local::{Domain, DomainEvent, Sandbox};
use ring_abi::DomId;
use ring_abi::xenbus::key;
use std::sync::Arc;
use std::time::Instant;
use toolstack::machine::attached::{self, Attached};
use toolstack::machine::device::NewDevice;
use xenbus::{Device, DeviceEnd, XenbusState};
use xenstore::server::{Config, Store};
use xenstore::{Client, Nodes};

/// A broker and a store in threads, which domains join. Both end when it is dropped.
pub struct Machine {
    // Dropped first: it calls the store.
    /// The broker, with the directory of its sockets.
    pub sandbox: Sandbox,
    /// The store's server.
    pub store: Store,
}

impl Machine {
    /// Starts a machine without devices; the drivers' log is printed with the test's output.
    #[allow(clippy::new_without_default)] // It starts threads.
    pub fn new() -> Machine {
        let log = tracing_subscriber::fmt().with_test_writer().with_env_filter("info");
        // Fails if another test of this program has set the log up already.
        let _ = log.try_init();
        Machine::without_log()
    }

    /// Starts a machine without devices whose drivers' log is discarded, for benchmarks.
    pub fn without_log() -> Machine {
        let store = Store::spawn(Config::default()).unwrap();
        let handle = store.handle();
        let sandbox = Sandbox::with_store(Box::new(move |event| {
            let handled = match event {
                DomainEvent::Connect { domid: DomId(0), stream, .. } => handle.connect(stream),
                DomainEvent::Connect { domid, stream, lease } => {
                    handle.introduce_with(domid, stream, Box::new(lease))
                }
                // Refused for a domain that never opened the store.
                DomainEvent::Exited { domid } => {
                    let _ = handle.release(domid);
                    Ok(())
                }
            };
            if let Err(error) = handled {
                eprintln!("the store failed: {error}");
            }
        }))
        .unwrap();
        Machine { sandbox, store }
    }

    /// Joins as a domain, which is created if it does not exist.
    pub fn domain(&self, domid: DomId) -> Arc<Domain> {
        self.sandbox.join(domid).unwrap()
    }

    /// Opens a connection to the store as dom0, for the toolstack's operations.
    pub fn client(&self) -> Client {
        let mut client = self.store.client().unwrap();
        client.set_reply_timeout(Some(BOUND));
        client
    }

    /// Attaches a device with these nodes.
    pub(crate) fn attach(&self, new: NewDevice) -> Device {
        let mut client = self.client();
        client.mkdir(&format!("/local/domain/{}", new.device.front)).unwrap();
        attached::add(&mut client, &new).unwrap();
        new.device
    }

    /// Asks the backend to close, as libxl does.
    pub fn detach(&self, device: &Device) {
        let mut client = self.client();
        let attached = Attached::find(&mut client, device).unwrap();
        let requested = attached.is_some_and(|attached| attached.request_close(&mut client).unwrap());
        assert!(requested, "{} does not exist", device.back_path());
    }

    /// Removes a device's nodes, as libxl does.
    pub fn remove(&self, device: &Device) {
        let mut client = self.client();
        let attached = Attached::find(&mut client, device).unwrap();
        attached.into_iter().for_each(|attached| attached.remove(&mut client).unwrap());
    }

    /// Reads the error that a device's backend reported in the store, if any.
    pub fn backend_error(&self, device: &Device) -> Option<String> {
        let path = DeviceEnd::back(device).error_path();
        let text = self.client().read_opt(&path).unwrap()?;
        Some(String::from_utf8(text).unwrap())
    }

    /// Reads the state of one end of a device.
    pub fn state(&self, path: &str) -> XenbusState {
        state(&mut self.client(), path)
    }

    /// Waits until one end of a device has the state `wanted`.
    pub fn wait_for_state(&self, path: &str, wanted: XenbusState) {
        self.wait_for(&format!("state {wanted} of {path}"), |client| state(client, path) == wanted);
    }

    /// Waits until `is` returns `true`; it is called after each change below `/local`.
    pub fn wait_for(&self, what: &str, mut is: impl FnMut(&mut Client) -> bool) {
        let mut client = self.client();
        client.watch("/local", "any").unwrap();
        let deadline = Instant::now() + BOUND;
        while !is(&mut client) {
            let left = deadline.saturating_duration_since(Instant::now());
            assert!(!left.is_zero(), "not within {BOUND:?}: {what}");
            let _ = client.wait_event(Some(left)).unwrap();
        }
    }
}

fn state(client: &mut Client, path: &str) -> XenbusState {
    client.read_opt_as(&format!("{path}/{}", key::STATE)).unwrap().unwrap_or(XenbusState::Unknown)
}
