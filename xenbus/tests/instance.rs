//! Which device it is that has a path, as the control loop of backends tells them apart.

use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use ring_abi::DomId;
use ring_abi::xenbus::key;
use xenbus::driver::{BackDevice, BackDriver, DeviceState, Failure, Update, Waker, run};
use xenbus::{Device, Keys, XenbusState};
use xenstore::server::{Config, Store};
use xenstore::{Client, Nodes};

/// Timeout of whatever the loop is to do.
const BOUND: Duration = Duration::from_secs(20);

/// A driver that reports its probes, and fails them where a device has the key `bad`.
struct Probes(Sender<()>);

/// A device that waits for a frontend.
struct Waiting;

impl BackDriver for Probes {
    fn kind(&self) -> &str {
        "vbd"
    }

    fn frontend_keys(&self) -> &'static [&'static str] {
        &["ring-ref"]
    }

    fn probe(&mut self, _: &Device, seen: &DeviceState, _: Waker) -> Result<Box<dyn BackDevice>, Failure> {
        self.0.send(()).unwrap();
        match seen.own.get("bad") {
            Some(_) => Err(Failure::new(22, "bad: found a value, expected none")),
            None => Ok(Box::new(Waiting)),
        }
    }
}

impl BackDevice for Waiting {
    fn changed(&mut self, seen: &DeviceState) -> Update {
        let state = (seen.own_state != XenbusState::InitWait).then_some(XenbusState::InitWait);
        Update { state, ..Update::default() }
    }
}

/// A store with one device, and a backend of it.
struct Machine {
    device: Device,
    client: Client,
    store: Store,
}

struct Backend {
    probes: Receiver<()>,
    stop: UnixStream,
    thread: JoinHandle<()>,
}

impl Machine {
    fn new() -> Machine {
        let store = Store::spawn(Config::default()).unwrap();
        let client = store.client().unwrap();
        Machine { device: Device::new("vbd", DomId(3), 51712), client, store }
    }

    /// Makes the backend's directory anew, in one transaction.
    fn attach(&mut self, state: XenbusState, keys: &Keys) {
        let back = self.device.back_path();
        let front = self.device.front_path();
        self.client
            .transaction(|tx| {
                if tx.exists(&back)? {
                    tx.rm(&back)?;
                }
                let ours =
                    [(key::FRONTEND, front.as_str()), (key::FRONTEND_ID, "3"), (key::STATE, state.as_text())];
                for (key, value) in ours.into_iter().chain(keys.iter()) {
                    tx.write(&format!("{back}/{key}"), value)?;
                }
                tx.write(&format!("{front}/{}", key::STATE), state.as_text())
            })
            .unwrap();
    }

    fn start(&self) -> Backend {
        let (sender, probes) = channel();
        let (stop, stopped) = UnixStream::pair().unwrap();
        let client = self.store.client().unwrap();
        let thread = std::thread::spawn(move || {
            run(client, DomId::DOM0, &mut Probes(sender), stopped.as_fd()).unwrap();
        });
        Backend { probes, stop, thread }
    }

    fn read(&mut self, key: &str) -> Option<String> {
        let path = format!("{}/{key}", self.device.back_path());
        self.client.read_opt(&path).unwrap().map(|value| String::from_utf8(value).unwrap())
    }

    /// Waits until the backend has written InitWait, and reads which device it takes this for.
    fn instance(&mut self) -> String {
        let started = Instant::now();
        while self.read(key::STATE).as_deref() != Some(XenbusState::InitWait.as_text()) {
            assert!(started.elapsed() < BOUND);
            std::thread::yield_now();
        }
        self.read(key::INSTANCE).expect("an instance")
    }
}

impl Backend {
    fn probed(&self) {
        self.probes.recv_timeout(BOUND).unwrap();
    }

    fn stop(self) {
        drop(self.stop);
        self.thread.join().unwrap();
    }
}

#[test]
fn device_that_is_replaced_at_once_is_probed_as_another_and_one_of_a_restarted_backend_stays_the_same() {
    let mut machine = Machine::new();
    machine.attach(XenbusState::Initialising, &Keys::default());
    let backend = machine.start();
    backend.probed();
    let first = machine.instance();
    assert_eq!(first.len(), 32);
    machine.attach(XenbusState::Initialising, &Keys::default());
    backend.probed();
    let second = machine.instance();
    assert_ne!(first, second);
    backend.stop();
    let successor = machine.start();
    successor.probed();
    assert_eq!(machine.instance(), second);
    successor.stop();
}

#[test]
fn device_that_cannot_be_served_is_not_closing_again_once_it_is_closed() {
    let mut machine = Machine::new();
    machine.attach(XenbusState::Closed, &Keys::default().with("bad", 1));
    let backend = machine.start();
    backend.probed();
    let error = format!("/local/domain/0/error/backend/vbd/3/{}/error", machine.device.id);
    let started = Instant::now();
    while machine.client.read_opt(&error).unwrap().is_none() {
        assert!(started.elapsed() < BOUND);
        std::thread::yield_now();
    }
    backend.stop();
    assert_eq!(machine.read(key::STATE).as_deref(), Some(XenbusState::Closed.as_text()));
}
