//! A whole machine in threads: broker, store, bridge and network backend, with vifs that tests plug and unplug.

use bridge::Bridge;
use hypervisor::local::{Domain, Event, Sandbox};
use hypervisor::{DomId, Hypervisor, InflightDir};
use netback::{Attachment, Config, Driver};
use netfront::Nic;
use nix::sys::eventfd::{EfdFlags, EventFd};
use std::os::fd::AsFd;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};
use xenstore::client::Access;
use xenstore::server::{self, Store};
use xenstore::xenbus::Device;
use xenstore::{Client, Keys, Nodes, Permission, XenbusState};

/// Longest that anything here may take.
pub(crate) const BOUND: Duration = Duration::from_secs(20);

/// A running backend in a thread.
pub(crate) struct Backend {
    stop: Arc<EventFd>,
    thread: Option<JoinHandle<()>>,
}

impl Drop for Backend {
    fn drop(&mut self) {
        self.stop.write(1).unwrap();
        let ended = self.thread.take().unwrap().join();
        assert!(ended.is_ok() || std::thread::panicking(), "the backend panicked");
    }
}

/// The machine. Fields are dropped in order: the backend before the bridge, the store last.
pub(crate) struct Machine {
    pub(crate) backend: Option<Backend>,
    pub(crate) bridge: Arc<Bridge>,
    pub(crate) dom0: Arc<Domain>,
    pub(crate) sandbox: Sandbox,
    pub(crate) store: Store,
}

impl Machine {
    pub(crate) fn new() -> Self {
        Self::with(Config::default())
    }

    /// Runs a test on a machine whose payloads are mapped, and on one that keeps response logs and so copies them.
    pub(crate) fn each(test: impl Fn(&Machine)) {
        test(&Self::new());
        let directory = tempfile::tempdir().unwrap();
        let keep = Some(InflightDir::new(directory.path()).unwrap());
        test(&Self::with(Config { keep, ..Config::default() }));
    }

    /// A machine with a backend of this configuration.
    pub(crate) fn with(config: Config) -> Self {
        let store = Store::spawn(server::Config::default()).unwrap();
        let handle = store.handle();
        let introducer = Box::new(move |event| match event {
            Event::Connect { domid: DomId(0), stream } => handle.connect(stream).unwrap(),
            Event::Connect { domid, stream } => handle.introduce(domid, stream).unwrap(),
            // A guest that never opened the store is not known there.
            Event::Gone { domid } => drop(handle.release(domid)),
        });
        let sandbox = Sandbox::with_store(introducer).unwrap();
        let dom0 = sandbox.join(DomId(0)).unwrap();
        let bridge = Arc::new(Bridge::start(bridge::Config::default()).unwrap());
        let mut machine = Self { backend: None, bridge, dom0, sandbox, store };
        machine.start_backend(config);
        machine
    }

    /// Starts a backend; the one that runs is ended first.
    pub(crate) fn start_backend(&mut self, config: Config) {
        self.backend = None;
        let (bridge, hv, client) = (self.bridge.clone(), self.dom0.clone(), self.store.client().unwrap());
        let stop = Arc::new(EventFd::from_flags(EfdFlags::EFD_CLOEXEC).unwrap());
        let until = stop.clone();
        let thread = std::thread::spawn(move || {
            let mut driver = Driver::new(hv, config, move |_, _| Ok(Attachment::port_of(bridge.clone())));
            xenstore::driver::run(client, DomId::DOM0, &mut driver, until.as_fd()).unwrap();
        });
        self.backend = Some(Backend { stop, thread: Some(thread) });
    }

    /// dom0's connection to the store.
    pub(crate) fn client(&self) -> Client {
        let mut client = self.store.client().unwrap();
        client.set_reply_timeout(Some(BOUND));
        client
    }

    /// A guest.
    pub(crate) fn join(&self, domid: u16) -> Arc<Domain> {
        self.sandbox.join(DomId(domid)).unwrap()
    }

    /// Writes what a toolstack writes of a vif, with `more` at the backend's node.
    pub(crate) fn plug(&self, domid: u16, devid: u32, more: &[(&str, &str)]) -> Device {
        let device = Device::new("vif", DomId(domid), devid);
        let mac = format!("00:16:3e:00:{domid:02x}:{devid:02x}");
        let front = Keys::new(device.front_path())
            .with("backend", device.back_path())
            .with("backend-id", 0)
            .with("handle", devid)
            .with("mac", &mac)
            .with("state", XenbusState::Initialising.as_text());
        let mut back = Keys::new(device.back_path())
            .with("frontend", device.front_path())
            .with("frontend-id", domid)
            .with("online", 1)
            .with("handle", devid)
            .with("mac", &mac);
        back.extend(more.iter().copied());
        back.set("state", XenbusState::Initialising.as_text());
        let permission = Permission::new;
        let front_perms = [permission(DomId(domid), Access::None), permission(DomId::DOM0, Access::Read)];
        let back_perms = [permission(DomId::DOM0, Access::None), permission(DomId(domid), Access::Read)];
        self.client()
            .transaction(|tx| {
                for (keys, perms) in [(&front, &front_perms), (&back, &back_perms)] {
                    tx.mkdir(keys.path())?;
                    tx.set_perms(keys.path(), perms)?;
                    for (key, value) in keys.iter() {
                        tx.write(&format!("{}/{key}", keys.path()), value)?;
                    }
                }
                Ok(())
            })
            .unwrap();
        device
    }

    /// Opens the guest's interface, which need not be up yet.
    pub(crate) fn open(&self, guest: &Arc<Domain>, devid: u32, config: netfront::Config) -> Nic {
        let hv: Arc<dyn Hypervisor> = guest.clone();
        let client = Client::new(hv.store().unwrap());
        Nic::open(hv, client, devid, config).unwrap()
    }

    /// A guest with one interface that is up.
    pub(crate) fn guest(&self, domid: u16, config: netfront::Config) -> Nic {
        self.plug(domid, 0, &[]);
        let guest = self.join(domid);
        let mut nic = self.open(&guest, 0, config);
        until(&mut nic, Nic::is_up);
        nic
    }

    /// A state in the store.
    pub(crate) fn state(&self, path: &str) -> XenbusState {
        let text = self.client().read_opt(&format!("{path}/state")).unwrap();
        text.map_or(XenbusState::Unknown, |text| String::from_utf8_lossy(&text).parse().unwrap())
    }

    /// Waits for a state in the store.
    pub(crate) fn await_state(&self, path: &str, wanted: XenbusState) {
        let mut client = self.client();
        client.watch(&format!("{path}/state"), "await").unwrap();
        let deadline = Instant::now() + BOUND;
        while self.state(path) != wanted {
            let left = deadline.saturating_duration_since(Instant::now());
            let event = client.wait_event(Some(left)).unwrap();
            assert!(event.is_some(), "{path} is {}, not {wanted}", self.state(path));
        }
    }
}

/// Turns the interface until `done`.
pub(crate) fn until(nic: &mut Nic, done: impl Fn(&Nic) -> bool) {
    let deadline = Instant::now() + BOUND;
    while !done(nic) {
        assert!(Instant::now() < deadline, "not within {BOUND:?}");
        nic.wait(false, Duration::from_millis(50)).unwrap();
    }
}

/// Receives a frame, waiting for it.
pub(crate) fn receive(nic: &mut Nic, into: &mut [u8]) -> (usize, netfront::Meta) {
    let deadline = Instant::now() + BOUND;
    loop {
        if let Some(received) = nic.recv(into) {
            return received;
        }
        assert!(Instant::now() < deadline, "no frame within {BOUND:?}");
        nic.wait(false, Duration::from_millis(50)).unwrap();
    }
}

/// Sends a frame, waiting for room.
pub(crate) fn send(nic: &mut Nic, frame: &[u8]) {
    let deadline = Instant::now() + BOUND;
    while nic.send(frame) == netfront::Sent::Full {
        assert!(Instant::now() < deadline, "no room within {BOUND:?}");
        nic.wait(true, Duration::from_millis(50)).unwrap();
    }
}

/// A frame whose every byte is told by its length and `seed`.
pub(crate) fn frame(to: [u8; 6], from: [u8; 6], len: usize, seed: u8) -> Vec<u8> {
    let mut frame: Vec<u8> = (0..len).map(|i| (i as u8).wrapping_mul(31) ^ (i >> 8) as u8 ^ seed).collect();
    frame[..6].copy_from_slice(&to);
    frame[6..12].copy_from_slice(&from);
    frame[12..14].copy_from_slice(&[0x88, 0xb5]);
    frame
}
