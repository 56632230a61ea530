//! The control loop of backends over a running store, with a driver that the test steers.

use event_loop::LongestTurn;
use nix::sys::eventfd::{EfdFlags, EventFd};
use ring_abi::DomId;
use ring_abi::xenbus::key;
use std::collections::BTreeMap;
use std::os::fd::AsFd;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};
use xenbus::driver::{BackDevice, BackDriver, DeviceState, Failure, Registry, Released, Update, Waker};
use xenbus::{Device, DeviceEnd, XenbusState};
use xenstore::server::{Config, Store};
use xenstore::{Client, Nodes};

/// Timeout of states.
const BOUND: Duration = Duration::from_secs(20);

/// What a driver is to do, and what it has done.
#[derive(Default)]
struct Steering {
    /// Devices cannot be served.
    refuses: AtomicBool,
    /// What is done during the next probe.
    during_probe: Mutex<Option<Box<dyn FnOnce() + Send>>>,
    /// The error of devices that cannot be served is this many bytes longer.
    longer_by: AtomicU32,
    /// Devices are another program's.
    foreign: AtomicBool,
    /// Another process uses what they need.
    is_in_use: AtomicBool,
    probes: AtomicU32,
    /// Devices that exist.
    devices: AtomicU32,
    /// What devices use is free only later.
    holds: Arc<AtomicBool>,
    /// How often each domain's device was called.
    calls: Mutex<BTreeMap<DomId, u32>>,
    /// The most keys of a frontend that a device was given.
    most_keys: AtomicU32,
}

struct Vifs(Arc<Steering>);
struct Vif(Arc<Steering>, DomId);

impl BackDriver for Vifs {
    fn kind(&self) -> &str {
        "vif"
    }

    fn frontend_keys(&self) -> &'static [&'static str] {
        &["ring-ref"]
    }

    fn probe(&mut self, device: &Device, _: &DeviceState, _: Waker) -> Result<Box<dyn BackDevice>, Failure> {
        self.0.probes.fetch_add(1, Ordering::Relaxed);
        if let Some(during_probe) = self.0.during_probe.lock().unwrap().take() {
            during_probe();
        }
        if self.0.refuses.load(Ordering::Relaxed) {
            let more = "x".repeat(self.0.longer_by.load(Ordering::Relaxed) as usize);
            return Err(Failure::new(19, format!("bridge: found \"br7\"{more}")));
        }
        if self.0.is_in_use.load(Ordering::Relaxed) {
            return Err(Failure::in_use_for_now("the tap is in use"));
        }
        self.0.devices.fetch_add(1, Ordering::Relaxed);
        Ok(Box::new(Vif(self.0.clone(), device.front)))
    }
}

impl BackDevice for Vif {
    fn changed(&mut self, seen: &DeviceState) -> Update {
        *self.0.calls.lock().unwrap().entry(self.1).or_default() += 1;
        self.0.most_keys.fetch_max(seen.other.len() as u32, Ordering::Relaxed);
        let state = if seen.online { XenbusState::Connected } else { XenbusState::Closed };
        Update { state: Some(state), ..Update::default() }
    }

    fn release(self: Box<Self>) -> Option<Released> {
        let holds = self.0.holds.clone();
        Some(Box::new(move || !holds.load(Ordering::Relaxed)))
    }

    fn is_foreign(&self) -> bool {
        self.0.foreign.load(Ordering::Relaxed)
    }
}

impl Drop for Vif {
    fn drop(&mut self) {
        self.0.devices.fetch_sub(1, Ordering::Relaxed);
    }
}

/// A driver in a thread, and the nodes of a device in this state, whose frontend is in another.
struct Setup {
    client: Client,
    back: DeviceEnd,
    steering: Arc<Steering>,
    stop: Arc<EventFd>,
    thread: Option<std::thread::JoinHandle<()>>,
    store: Store,
    longest_turn: LongestTurn,
}

fn setup(states: [XenbusState; 2], refuses: bool) -> Setup {
    let store = Store::spawn(Config::default()).unwrap();
    let mut client = store.client().unwrap();
    client.set_reply_timeout(Some(BOUND));
    let back = write_nodes(&mut client, DomId(3), states);
    let steering = Arc::new(Steering { refuses: refuses.into(), ..Steering::default() });
    let stop = Arc::new(EventFd::from_flags(EfdFlags::EFD_CLOEXEC).unwrap());
    let own_client = store.client().unwrap();
    let mut driver = Vifs(steering.clone());
    let stop_of_thread = stop.clone();
    let registry = Registry::default();
    let longest_turn = registry.longest_turn();
    let run = move || {
        let stop = stop_of_thread.as_fd();
        xenbus::driver::run_registered(own_client, DomId::DOM0, &mut driver, &registry, stop).unwrap();
    };
    let thread = Some(std::thread::spawn(run));
    Setup { client, back, steering, stop, thread, store, longest_turn }
}

/// Writes the nodes of a domain's device, of which the backend's is returned.
fn write_nodes(client: &mut Client, domid: DomId, states: [XenbusState; 2]) -> DeviceEnd {
    let device = Device::new("vif", domid, 0);
    let front = DeviceEnd::front(&device);
    let back = DeviceEnd::back(&device);
    let id = domid.to_string();
    client.write(&format!("{}/{}", front.path(), key::STATE), states[1].as_text()).unwrap();
    for (key, value) in [
        (key::ONLINE, "1"),
        (key::STATE, states[0].as_text()),
        (key::FRONTEND_ID, &id),
        (key::FRONTEND, front.path()),
    ] {
        client.write(&format!("{}/{key}", back.path()), value).unwrap();
    }
    back
}

impl Setup {
    fn wait_until(&mut self, what: &str, is: impl Fn(&mut Setup) -> bool) {
        let start = Instant::now();
        while !is(self) {
            assert!(start.elapsed() < BOUND, "not within {BOUND:?}: {what}");
            std::thread::park_timeout(Duration::from_millis(1));
        }
    }

    fn wait_for(&mut self, state: XenbusState) {
        self.wait_until(state.name(), |setup| setup.back.state(&mut setup.client).unwrap() == state);
    }

    fn calls(&self, domid: u16) -> u32 {
        self.steering.calls.lock().unwrap().get(&DomId(domid)).copied().unwrap_or(0)
    }

    /// Writes the state of a domain's frontend and waits until its device was called.
    fn touch(&mut self, domid: u16) {
        let calls = self.calls(domid);
        let path = format!("/local/domain/{domid}/device/vif/0/state");
        self.client.write(&path, XenbusState::Initialised.as_text()).unwrap();
        self.wait_until("a call", |setup| setup.calls(domid) > calls);
    }

    fn set(&mut self, key: &str, value: &str) {
        self.client.write(&format!("{}/{key}", self.back.path()), value).unwrap();
    }

    fn error(&mut self) -> Option<String> {
        let text = self.client.read_opt(&self.back.error_path()).unwrap()?;
        Some(String::from_utf8(text).unwrap())
    }
}

impl Drop for Setup {
    fn drop(&mut self) {
        self.stop.write(1).unwrap();
        let ended = self.thread.take().unwrap().join();
        assert!(ended.is_ok() || std::thread::panicking());
    }
}

#[test]
fn device_that_is_not_wanted_any_more_is_dropped_before_closed_is_written() {
    let mut setup = setup([XenbusState::Initialising; 2], false);
    setup.wait_for(XenbusState::Connected);
    assert_eq!(setup.steering.devices.load(Ordering::Relaxed), 1);
    // As a toolstack does; also while the device is Closed already.
    for _ in 0..2 {
        setup.set(key::ONLINE, "0");
        setup.set(key::STATE, XenbusState::Closing.as_text());
        setup.wait_for(XenbusState::Closed);
        assert_eq!(setup.steering.devices.load(Ordering::Relaxed), 0);
    }
    // The same nodes may be wanted again.
    setup.set(key::ONLINE, "1");
    setup.wait_for(XenbusState::Connected);
}

#[test]
fn device_is_closed_or_made_anew_only_once_what_it_used_is_free() {
    let mut setup = setup([XenbusState::Initialising; 2], false);
    for wanted_again in [false, true] {
        setup.wait_for(XenbusState::Connected);
        let probes = setup.steering.probes.load(Ordering::Relaxed);
        setup.steering.holds.store(true, Ordering::Relaxed);
        setup.set(key::ONLINE, "0");
        setup.set(key::STATE, XenbusState::Closing.as_text());
        setup.wait_until("it is dropped", |setup| setup.steering.devices.load(Ordering::Relaxed) == 0);
        if wanted_again {
            setup.set(key::ONLINE, "1");
        }
        // The device is read for each of these.
        for _ in 0..3 {
            let front = format!("{}/{}", setup.back.other_path(), key::STATE);
            setup.client.write(&front, XenbusState::Closing.as_text()).unwrap();
            std::thread::park_timeout(Duration::from_millis(30));
            assert_eq!(setup.back.state(&mut setup.client).unwrap(), XenbusState::Closing);
        }
        assert_eq!(setup.steering.probes.load(Ordering::Relaxed), probes);
        setup.steering.holds.store(false, Ordering::Relaxed);
        if !wanted_again {
            setup.wait_for(XenbusState::Closed);
            setup.set(key::ONLINE, "1");
        }
    }
    setup.wait_for(XenbusState::Connected);
}

#[test]
fn driver_that_stops_waits_for_what_its_devices_used() {
    let mut setup = setup([XenbusState::Initialising; 2], false);
    setup.wait_for(XenbusState::Connected);
    setup.steering.holds.store(true, Ordering::Relaxed);
    setup.stop.write(1).unwrap();
    setup.wait_until("it is dropped", |setup| setup.steering.devices.load(Ordering::Relaxed) == 0);
    std::thread::park_timeout(Duration::from_millis(50));
    assert!(!setup.thread.as_ref().unwrap().is_finished());
    setup.steering.holds.store(false, Ordering::Relaxed);
    setup.wait_until("it ends", |setup| setup.thread.as_ref().unwrap().is_finished());
}

#[test]
fn device_that_was_served_and_cannot_be_is_reported_and_probed_until_it_can() {
    let mut setup = setup([XenbusState::Connected; 2], true);
    setup.wait_until("probes", |setup| setup.steering.probes.load(Ordering::Relaxed) > 3);
    assert_eq!(setup.back.state(&mut setup.client).unwrap(), XenbusState::Connected);
    assert!(setup.error().unwrap().starts_with("19 bridge: found \"br7\""));
    setup.steering.refuses.store(false, Ordering::Relaxed);
    setup.wait_until("it is served", |setup| setup.steering.devices.load(Ordering::Relaxed) == 1);
    setup.wait_until("its error is removed", |setup| setup.error().is_none());
}

#[test]
fn device_that_is_not_served_is_closed_with_its_frontend_when_it_is_not_wanted() {
    let mut setup = setup([XenbusState::Initialising, XenbusState::Connected], true);
    setup.wait_for(XenbusState::Closing);
    let probes = setup.steering.probes.load(Ordering::Relaxed);
    setup.set(key::ONLINE, "0");
    let front = format!("{}/{}", setup.back.other_path(), key::STATE);
    setup.client.write(&front, XenbusState::Closing.as_text()).unwrap();
    assert_eq!(setup.back.state(&mut setup.client).unwrap(), XenbusState::Closing);
    setup.client.write(&front, XenbusState::Closed.as_text()).unwrap();
    setup.wait_for(XenbusState::Closed);
    assert_eq!(setup.steering.probes.load(Ordering::Relaxed), probes, "a device that is to go is not probed");
    setup.client.rm(setup.back.path()).unwrap();
    setup.wait_until("its error is removed", |setup| setup.error().is_none());
}

/// A second process on a Xen host waits for the end of the first one, which may be closing the device.
#[test]
fn device_that_another_process_serves_is_left_to_it_whether_it_is_wanted_or_not() {
    let mut setup = setup([XenbusState::Connected, XenbusState::Connected], true);
    setup.steering.is_in_use.store(true, Ordering::Relaxed);
    setup.steering.refuses.store(false, Ordering::Relaxed);
    let front = format!("{}/{}", setup.back.other_path(), key::STATE);
    setup.set(key::STATE, XenbusState::Closing.as_text());
    setup.set(key::ONLINE, "0");
    setup.client.write(&front, XenbusState::Closed.as_text()).unwrap();
    let probes = setup.steering.probes.load(Ordering::Relaxed);
    setup.wait_until("probes", |setup| setup.steering.probes.load(Ordering::Relaxed) > probes + 3);
    assert_eq!(setup.back.state(&mut setup.client).unwrap(), XenbusState::Closing);
    assert!(!setup.error().is_some_and(|error| error.contains("in use")));
    // The other process has died instead.
    setup.steering.is_in_use.store(false, Ordering::Relaxed);
    setup.wait_for(XenbusState::Closed);
}

#[test]
fn failure_of_a_device_whose_frontend_changes_meanwhile_is_reported() {
    let mut setup = setup([XenbusState::Initialising; 2], true);
    setup.wait_for(XenbusState::Closing);
    // As another device: the frontend changes its state while the device is probed.
    let front = format!("{}/{}", setup.back.other_path(), key::STATE);
    let mut client = setup.store.client().unwrap();
    *setup.steering.during_probe.lock().unwrap() = Some(Box::new(move || {
        client.write(&front, XenbusState::Closed.as_text()).unwrap();
    }));
    let path = setup.back.path().to_owned();
    setup.client.rm(&path).unwrap();
    setup.wait_until("its error is removed", |setup| setup.error().is_none());
    setup.client.write(&format!("{path}/{}", key::STATE), XenbusState::Initialising.as_text()).unwrap();
    setup.set(key::FRONTEND, "/local/domain/3/device/vif/0");
    setup.set(key::FRONTEND_ID, "3");
    setup.wait_for(XenbusState::Closing);
    assert!(setup.error().unwrap().starts_with("19 bridge: found"));
}

#[test]
fn failure_with_a_text_longer_than_a_node_is_shortened() {
    let mut setup = setup([XenbusState::Connected; 2], true);
    setup.wait_until("probes", |setup| setup.steering.probes.load(Ordering::Relaxed) > 1);
    setup.steering.longer_by.store(5000, Ordering::Relaxed);
    setup.wait_until("a longer text", |setup| setup.error().is_some_and(|error| error.len() > 500));
    setup.steering.refuses.store(false, Ordering::Relaxed);
    setup.wait_until("it is served", |setup| setup.steering.devices.load(Ordering::Relaxed) == 1);
}

#[test]
fn nodes_of_a_device_that_another_program_serves_are_not_written() {
    let mut setup = setup([XenbusState::Connected; 2], true);
    setup.wait_until("its error is reported", |setup| setup.error().is_some());
    setup.steering.foreign.store(true, Ordering::Relaxed);
    setup.steering.refuses.store(false, Ordering::Relaxed);
    setup.wait_until("it is served", |setup| setup.steering.devices.load(Ordering::Relaxed) == 1);
    setup.set(key::STATE, XenbusState::Closing.as_text());
    setup.set(key::ONLINE, "0");
    let path = setup.back.path().to_owned();
    setup.client.rm(&path).unwrap();
    setup.wait_until("it is dropped", |setup| setup.steering.devices.load(Ordering::Relaxed) == 0);
    assert!(setup.error().is_some());
}

#[test]
fn keys_that_a_driver_does_not_know_are_not_read() {
    let mut setup = setup([XenbusState::Initialising; 2], false);
    let front = setup.back.other_path().to_owned();
    for n in 0..950 {
        setup.client.write(&format!("{front}/key-{n}"), "").unwrap();
    }
    setup.client.write(&format!("{front}/ring-ref"), "8").unwrap();
    // The keys are read before a device is connected.
    let path = setup.back.path().to_owned();
    setup.client.rm(&path).unwrap();
    setup.wait_until("it is dropped", |setup| setup.steering.devices.load(Ordering::Relaxed) == 0);
    write_nodes(&mut setup.client, DomId(3), [XenbusState::Initialising, XenbusState::Initialised]);
    setup.wait_until("its keys", |setup| setup.steering.most_keys.load(Ordering::Relaxed) > 0);
    assert_eq!(setup.steering.most_keys.load(Ordering::Relaxed), 1);
}

#[test]
fn lost_events_of_one_frontend_concern_its_device_alone() {
    let mut setup = setup([XenbusState::Initialising; 2], false);
    setup.wait_for(XenbusState::Connected);
    for domid in [4, 5] {
        let back = write_nodes(&mut setup.client, DomId(domid), [XenbusState::Initialising; 2]);
        setup.wait_until("it is connected", |setup| {
            back.state(&mut setup.client).unwrap() == XenbusState::Connected
        });
    }
    // Events come in order: when those of the last are taken, the others' are.
    (3..=5).for_each(|domid| setup.touch(domid));
    let calls = setup.calls(4);
    // More events than a client queues come while the loop makes another request, as it has one device more to probe.
    let mut client = setup.store.client().unwrap();
    *setup.steering.during_probe.lock().unwrap() = Some(Box::new(move || {
        for n in 0..1100 {
            client.write(&format!("/local/domain/3/device/vif/0/state/{n}"), "").unwrap();
        }
    }));
    let before = setup.calls(3);
    write_nodes(&mut setup.client, DomId(6), [XenbusState::Initialising; 2]);
    setup.wait_until("its device is read", |setup| setup.calls(3) > before);
    // What was marked with it, in the order of the domains, was read by now too.
    setup.touch(5);
    assert_eq!(setup.calls(4), calls, "another domain's device was read");
}

#[test]
fn frontends_that_rewrite_their_states_without_end_delay_no_other_device() {
    let mut setup = setup([XenbusState::Initialising; 2], false);
    let stop = Arc::new(AtomicBool::new(false));
    let stopped = stop.clone();
    let mut client = setup.store.client().unwrap();
    for devid in 1..30 {
        let back = format!("/local/domain/0/backend/vif/3/{devid}");
        let front = format!("/local/domain/3/device/vif/{devid}");
        for (path, value) in [
            (format!("{front}/state"), "1"),
            (format!("{back}/state"), "1"),
            (format!("{back}/frontend-id"), "3"),
            (format!("{back}/frontend"), front.as_str()),
        ] {
            client.write(&path, value).unwrap();
        }
    }
    let storm = std::thread::spawn(move || {
        let mut written = 0_u64;
        while !stopped.load(Ordering::Relaxed) {
            for devid in 0..30 {
                client.write(&format!("/local/domain/3/device/vif/{devid}/state"), "3").unwrap();
                written += 1;
            }
        }
        written
    });
    setup.wait_until("the burst is used up", |setup| setup.calls(3) > 500);
    let start = Instant::now();
    write_nodes(&mut setup.client, DomId(4), [XenbusState::Initialising; 2]);
    setup.wait_until("another domain's device", |setup| setup.calls(4) > 0);
    (0..5).for_each(|_| setup.touch(4));
    let took = start.elapsed();
    stop.store(true, Ordering::Relaxed);
    let written = storm.join().unwrap();
    let turn = setup.longest_turn.get();
    println!("{took:?} for six calls beside {written} writes; the longest turn {turn:?}");
    assert!(turn < LONGEST_TURN, "a turn takes {turn:?}");
}

/// The longest that a turn of the loop may take of its thread's processor time; code that is not optimized takes longer.
const LONGEST_TURN: Duration = Duration::from_millis(if cfg!(debug_assertions) { 50 } else { 10 });
