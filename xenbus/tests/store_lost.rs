//! The control loop of backends, whose store is lost and has a successor.

use event_loop::{Connector, Stream};
use nix::sys::eventfd::{EfdFlags, EventFd};
use ring_abi::DomId;
use ring_abi::xenbus::key;
use std::io;
use std::os::fd::AsFd;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};
use xenbus::driver::{BackDevice, BackDriver, DeviceState, Failure, Registry, Update, Waker};
use xenbus::{Device, DeviceEnd, XenbusState};
use xenstore::server::{Config, Store, StoreHandle};
use xenstore::{Client, Nodes};

const BOUND: Duration = Duration::from_secs(20);

/// Leads to the present store, if there is one.
#[derive(Clone, Default)]
struct Present(Arc<Mutex<Option<StoreHandle>>>);

impl Present {
    fn set(&self, store: Option<StoreHandle>) {
        *self.0.lock().unwrap() = store;
    }
}

impl Connector for Present {
    fn connect(&self) -> io::Result<Box<dyn Stream>> {
        match &*self.0.lock().unwrap() {
            Some(store) => Connector::connect(store),
            None => Err(io::ErrorKind::ConnectionRefused.into()),
        }
    }
}

/// How many devices there are, and were made.
#[derive(Default)]
struct Counts {
    devices: AtomicU32,
    made: AtomicU32,
}

struct Vifs(Arc<Counts>);
struct Vif(Arc<Counts>);

impl BackDriver for Vifs {
    fn kind(&self) -> &str {
        "vif"
    }

    fn frontend_keys(&self) -> &'static [&'static str] {
        &[]
    }

    fn probe(&mut self, _: &Device, _: &DeviceState, _: Waker) -> Result<Box<dyn BackDevice>, Failure> {
        self.0.made.fetch_add(1, Ordering::Relaxed);
        self.0.devices.fetch_add(1, Ordering::Relaxed);
        Ok(Box::new(Vif(self.0.clone())))
    }
}

impl BackDevice for Vif {
    fn changed(&mut self, seen: &DeviceState) -> Update {
        let state = if seen.online { XenbusState::Connected } else { XenbusState::Closed };
        Update { state: Some(state), ..Update::default() }
    }
}

impl Drop for Vif {
    fn drop(&mut self) {
        self.0.devices.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Writes the nodes of a device.
fn attach(client: &mut Client, domid: u16) -> DeviceEnd {
    let device = Device::new("vif", DomId(domid), 0);
    let back = DeviceEnd::back(&device);
    let front = DeviceEnd::front(&device);
    for (path, value) in [
        (format!("{}/{}", front.path(), key::STATE), XenbusState::Initialised.as_text().to_owned()),
        (format!("{}/{}", back.path(), key::FRONTEND_ID), domid.to_string()),
        (format!("{}/{}", back.path(), key::FRONTEND), front.path().to_owned()),
        (format!("{}/{}", back.path(), key::STATE), XenbusState::Initialising.as_text().to_owned()),
    ] {
        client.write(&path, value).unwrap();
    }
    back
}

fn wait_until(what: &str, mut is: impl FnMut() -> bool) {
    let end = Instant::now() + BOUND;
    while !is() {
        assert!(Instant::now() < end, "not within {BOUND:?}: {what}");
        std::thread::park_timeout(Duration::from_millis(1));
    }
}

#[test]
fn devices_are_served_on_while_the_store_is_lost_and_followed_at_its_successor() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("store.state");
    let mut store = Store::spawn(Config { state: Some(path.clone()), ..Config::default() }).unwrap();
    let present = Present::default();
    present.set(Some(store.handle()));
    let mut client = store.client().unwrap();
    let kept = attach(&mut client, 1);
    let removed = attach(&mut client, 2);
    let counts = Arc::new(Counts::default());
    let mut driver = Vifs(counts.clone());
    let stop = EventFd::from_flags(EfdFlags::EFD_CLOEXEC).unwrap();
    std::thread::scope(|scope| {
        let store_of_thread = present.clone();
        let thread = scope.spawn(|| {
            let registry = Registry::default();
            let connector = store_of_thread;
            xenbus::driver::run_connected(&connector, DomId::DOM0, &mut driver, &registry, stop.as_fd())
        });
        let connected =
            |client: &mut Client, end: &DeviceEnd| end.state(client).unwrap() == XenbusState::Connected;
        wait_until("both are connected", || {
            connected(&mut client, &kept) && connected(&mut client, &removed)
        });
        for round in 0..10u16 {
            present.set(None);
            store.hand_over();
            let predecessor = xenstore::server::Image::read(&path).unwrap();
            assert!(predecessor.is_some());
            let config = Config { state: Some(path.clone()), predecessor, ..Config::default() };
            store = Store::spawn(config).unwrap();
            client = store.client().unwrap();
            if round == 0 {
                // Before the driver is there.
                client.rm(removed.path()).unwrap();
            }
            present.set(Some(store.handle()));
            let new = attach(&mut client, 3 + round);
            wait_until("the new one is connected", || connected(&mut client, &new));
            client.rm(new.path()).unwrap();
            wait_until("one is left", || counts.devices.load(Ordering::Relaxed) == 1);
        }
        assert_eq!(counts.made.load(Ordering::Relaxed), 12, "a device was made anew");
        // Without a store and a successor the driver can be stopped.
        present.set(None);
        drop(store);
        stop.write(1).unwrap();
        thread.join().unwrap().unwrap();
    });
}
