//! A disk that is in use while the toolstack wants it closed, and one that is given up before it is connected.

use std::io::{self, Write};
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::sync::{Arc, Mutex};

use blkfront::{Disk, Operation, Options, Request};
use event_loop::{Connector, Stream};
use hypervisor::local::Domain;
use ring_abi::DomId;
use tempfile::NamedTempFile;
use testkit::block::{Backend, GUEST, RawBackend, XVDA, open, options};
use testkit::{BOUND, HookedStream, Machine};
use xenbus::{Device, DeviceEnd, XenbusState};
use xenstore::{Access, Nodes, Permission};

const MIB: u64 = 1 << 20;

/// A machine with a disk of 1 MiB. Fields are dropped in this order.
struct Setup {
    back: Backend,
    device: Device,
    guest: Arc<Domain>,
    machine: Machine,
    _file: NamedTempFile,
}

fn setup() -> Setup {
    let file = NamedTempFile::new().unwrap();
    file.as_file().set_len(MIB).unwrap();
    let machine = Machine::new();
    let back = Backend::start(&machine);
    let device = machine.attach_disk(GUEST, XVDA, file.path().to_str().unwrap());
    let guest = machine.domain(GUEST);
    make_errors_node(&machine);
    Setup { back, device, guest, machine, _file: file }
}

/// Makes the node in which the guest reports errors.
fn make_errors_node(machine: &Machine) {
    let errors = format!("/local/domain/{GUEST}/error");
    let mut dom0 = machine.client();
    dom0.mkdir(&errors).unwrap();
    dom0.set_perms(&errors, &[Permission::new(GUEST, Access::None)]).unwrap();
}

impl Setup {
    /// The error that the frontend has reported.
    fn frontend_error(&self) -> Option<String> {
        let path = format!("/local/domain/{GUEST}/error/device/vbd/{XVDA}/error");
        self.machine.client().read_opt(&path).unwrap().map(|text| String::from_utf8(text).unwrap())
    }
}

/// Lets the disk process its events until `is` is true.
fn wait_until(disk: &mut Disk, is: impl Fn(&Disk) -> bool) {
    let started = std::time::Instant::now();
    while !is(disk) {
        assert!(started.elapsed() < BOUND);
        let _ = disk.wait(&mut Vec::new(), Some(BOUND / 100));
    }
}

#[test]
fn disk_in_use_is_served_and_reports_it_until_it_is_not_in_use() {
    let setup = setup();
    let mut disk = open(&setup.guest, options());
    disk.set_in_use(true).unwrap();
    setup.machine.detach(&setup.device);
    wait_until(&mut disk, |_| setup.frontend_error().is_some());
    let error = setup.frontend_error().unwrap();
    assert!(error.starts_with("16 "), "{error}");
    disk.write_at(0, &[1; 4096]).unwrap();
    assert!(!disk.is_closed());
    assert_eq!(setup.machine.state(&setup.device.front_path()), XenbusState::Connected);
    disk.set_in_use(false).unwrap();
    assert!(disk.is_closed());
    assert_eq!(setup.frontend_error(), None);
    disk.close().unwrap();
    setup.machine.wait_for_state(&setup.device.back_path(), XenbusState::Closed);
}

#[test]
fn disk_in_use_is_closed_when_its_nodes_are_removed() {
    let setup = setup();
    let mut disk = open(&setup.guest, options());
    disk.set_in_use(true).unwrap();
    setup.machine.remove(&setup.device);
    wait_until(&mut disk, Disk::is_closed);
    disk.close().unwrap();
}

#[test]
fn disk_in_use_that_has_refused_to_close_is_served_by_successors_until_it_is_not_in_use() {
    let Setup { mut back, device, guest, machine, _file } = setup();
    let mut disk = open(&guest, options());
    disk.set_in_use(true).unwrap();
    machine.detach(&device);
    let back_path = device.back_path();
    for round in 1..=3 {
        wait_until(&mut disk, |_| machine.state(&back_path) == XenbusState::Closing);
        back.stop();
        disk.process_events().unwrap();
        if round == 2 {
            // Again, while nobody serves it.
            machine.detach(&device);
        }
        assert!(!disk.is_closed());
        back = Backend::start(&machine);
        disk.write_at(0, &[round; 4096]).unwrap();
    }
    disk.set_in_use(false).unwrap();
    wait_until(&mut disk, Disk::is_closed);
    disk.close().unwrap();
    machine.wait_for_state(&back_path, XenbusState::Closed);
    back.stop();
}

#[test]
fn disk_not_in_use_that_is_detached_while_nobody_serves_it_is_closed() {
    let Setup { back, device, guest, machine, _file } = setup();
    let mut disk = open(&guest, options());
    back.stop();
    machine.detach(&device);
    wait_until(&mut disk, Disk::is_closed);
    let successor = Backend::start(&machine);
    machine.wait_for_state(&device.back_path(), XenbusState::Closed);
    successor.stop();
}

#[test]
fn disk_in_use_is_closed_once_nobody_will_serve_it() {
    let machine = Machine::new();
    make_errors_node(&machine);
    let dom0 = machine.domain(DomId::DOM0);
    let (mut disk, back) = RawBackend::connect(&machine, &*dom0, GUEST);
    disk.set_in_use(true).unwrap();
    let device = back.device.clone();
    drop(back);
    // It sees that the event channel is closed.
    disk.process_events().unwrap();
    machine.detach(&device);
    disk.process_events().unwrap();
    assert!(!disk.is_closed());
    DeviceEnd::back(&device).switch_state(&mut machine.client(), XenbusState::Closed).unwrap();
    wait_until(&mut disk, Disk::is_closed);
    assert_eq!(machine.state(&device.front_path()), XenbusState::Closed);
}

#[test]
fn disk_that_closes_with_requests_in_flight_is_closed_when_its_backend_is_gone() {
    let machine = Machine::new();
    let dom0 = machine.domain(DomId::DOM0);
    let (mut disk, back) = RawBackend::connect(&machine, &*dom0, GUEST);
    let device = back.device.clone();
    let front = device.front_path();
    disk.submit(Request::flush(1)).unwrap();
    disk.commit().unwrap();
    machine.detach(&device);
    wait_until(&mut disk, |_| machine.state(&front) == XenbusState::Closing);
    drop(back);
    wait_until(&mut disk, |_| machine.state(&front) == XenbusState::Closed);
    assert!(matches!(disk.wait(&mut Vec::new(), None), Err(blkfront::Error::Closed)));
}

/// What happens before the next request is sent.
type Hook = Arc<Mutex<Option<Box<dyn FnOnce() + Send>>>>;

/// A store before whose next request is sent something happens.
struct Meddler {
    store: Arc<Domain>,
    before_request: Hook,
}

impl Connector for Meddler {
    fn connect(&self) -> io::Result<Box<dyn Stream>> {
        let before_request = self.before_request.clone();
        let hooked = HookedStream::new(self.store.connect()?, move || {
            if let Some(before) = before_request.lock().unwrap().take() {
                before();
            }
        });
        Ok(Box::new(hooked))
    }
}

#[test]
fn disk_in_use_follows_a_successor_whose_state_comes_with_a_reply() {
    let Setup { back, device, guest, machine, _file } = setup();
    let machine = Arc::new(machine);
    let before_request = Arc::default();
    let store = Meddler { store: guest.clone(), before_request: Arc::clone(&before_request) };
    let mut disk = Disk::open_with(guest.clone(), guest, Arc::new(store), XVDA, options()).unwrap();
    disk.set_in_use(true).unwrap();
    back.stop();
    let successor = Arc::new(Mutex::new(None));
    let started = successor.clone();
    let machine_of_hook = machine.clone();
    let back_path = device.back_path();
    let path_of_hook = back_path.clone();
    // The disk sees its event channel closed, and asks the store whether it is to close.
    *before_request.lock().unwrap() = Some(Box::new(move || {
        *started.lock().unwrap() = Some(Backend::start(&machine_of_hook));
        machine_of_hook.wait_for_state(&path_of_hook, XenbusState::InitWait);
    }));
    wait_until(&mut disk, |_| {
        successor.lock().unwrap().is_some() && machine.state(&back_path) == XenbusState::Connected
    });
    disk.write_at(0, &[1; 4096]).unwrap();
    disk.close().unwrap();
    drop(successor.lock().unwrap().take());
}

/// As a kernel does that was started in place of a crashed one, or a guest's own doing: the backend goes back to InitWait.
#[test]
fn disk_whose_frontend_s_state_is_overwritten_with_initialising_is_served_again() {
    let Setup { back, device, guest, machine, _file } = setup();
    let mut disk = open(&guest, options());
    for in_use in [false, true] {
        disk.set_in_use(in_use).unwrap();
        let state = format!("{}/state", device.front_path());
        machine.client().write(&state, XenbusState::Initialising.as_text()).unwrap();
        wait_until(&mut disk, |_| machine.state(&device.front_path()) != XenbusState::Initialising);
        disk.write_at(0, &[1; 4096]).unwrap();
        assert_eq!(machine.state(&device.back_path()), XenbusState::Connected);
    }
    back.stop();
}

#[test]
fn opening_a_disk_whose_backend_does_not_connect_ends_when_it_is_stopped() {
    let machine = Machine::new();
    machine.attach_disk(GUEST, XVDA, "/dev/null");
    let guest = machine.domain(GUEST);
    let (mut stop, stopped) = UnixStream::pair().unwrap();
    stop.write_all(&[1]).unwrap();
    let options = Options { timeout: BOUND * 1000, ..options() };
    let opened = Disk::open_until(guest.clone(), guest.clone(), guest, XVDA, options, stopped.as_fd());
    assert!(opened.unwrap().is_none());
}

#[test]
fn opening_a_disk_whose_nodes_are_removed_fails_at_once_and_says_after_what_time() {
    let machine = Machine::new();
    let device = machine.attach_disk(GUEST, XVDA, "/dev/null");
    let guest = machine.domain(GUEST);
    let timeout = BOUND * 1000;
    std::thread::scope(|scope| {
        let opening = scope.spawn(|| {
            let options = Options { timeout, ..options() };
            Disk::open_with(guest.clone(), guest.clone(), guest.clone(), XVDA, options)
        });
        machine.remove(&device);
        let error = opening.join().unwrap().err().unwrap();
        match error {
            blkfront::Error::NotConnected { after, .. } => assert!(after < BOUND, "{error}"),
            // The nodes were removed first.
            blkfront::Error::Store(_) => {}
            error => panic!("{error}"),
        }
    });
}

/// No backend will ever answer the requests that are on a ring which none has connected to.
#[test]
fn disk_detached_while_it_reconnects_with_requests_in_flight_is_closed() {
    let setup = setup();
    let mut disk = open(&setup.guest, options());
    let Setup { back, device, machine, guest: _guest, _file } = setup;
    back.stop();
    let buffer = disk.buffer(4096).unwrap();
    let write =
        Request { token: 1, operation: Operation::Write, sector: 0, bytes: 4096, buffer: Some(buffer) };
    disk.submit(write).unwrap();
    disk.commit().unwrap();
    // A successor of the backend waits for a ring, and dies once it is there.
    let back = DeviceEnd::back(&device);
    back.switch_state(&mut machine.client(), XenbusState::InitWait).unwrap();
    let front = device.front_path();
    wait_until(&mut disk, |_| machine.state(&front) == XenbusState::Initialised);
    assert_eq!(disk.in_flight(), 1);
    machine.detach(&device);
    wait_until(&mut disk, |_| machine.state(&front) == XenbusState::Closed);
}
