//! What a successor of a backend does with the rings that it finds: it resumes all of them, or has the frontend connect anew.

use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};

use blkback::engine::{Completion, DiscardLimits, IoRequest, RamDisk};
use blkback::{Disk, DiskInfo, Engine, VbdDriver};
use event_channel::{Channel, EventChannels, WaitChannel};
use hypervisor::local::Domain;
use inflight::InflightDir;
use ring_abi::blkif::{Discard, OP_DISCARD, OP_READ, OP_WRITE, Request, Status, key};
use ring_abi::{DomId, EventPort, PAGE_SIZE};
use tempfile::TempDir;
use testkit::block::{Backend, GUEST, RawFrontend, XVDA};
use testkit::{FrontendDevice, Machine};
use xenbus::XenbusState;

/// Event channels that a successor can bind, as on Xen; what it is given instead of the local hypervisor's is connected to
/// nobody.
struct RebindableChannels(Arc<Domain>);

impl EventChannels for RebindableChannels {
    type Channel = Box<dyn WaitChannel>;

    fn alloc_unbound(&self, peer: DomId) -> event_channel::Result<Box<dyn WaitChannel>> {
        self.0.alloc_unbound(peer)
    }
    fn bind_interdomain(&self, peer: DomId, port: EventPort) -> event_channel::Result<Box<dyn WaitChannel>> {
        self.0.bind_interdomain(peer, port).or_else(|_| self.0.alloc_unbound(peer))
    }
}

fn start(machine: &Machine, inflight_dir: &Path) -> Backend {
    let hv = machine.domain(DomId::DOM0);
    let mut driver = VbdDriver::new(hv.clone(), Arc::new(RebindableChannels(hv.clone())));
    driver.set_inflight_dir(InflightDir::new(inflight_dir).unwrap());
    driver.set_max_queues(3);
    Backend::start_with(driver, &hv)
}

/// Overwrites a word of the log, in which `found` is expected, between two backends; the frontend connects anew and is served.
fn frontend_connects_anew_after(offset: u64, found: u32, written: u32) {
    let inflight_dir = tempfile::tempdir().unwrap();
    let machine = Machine::new();
    let back = start(&machine, inflight_dir.path());
    let device = machine.attach_disk(GUEST, XVDA, "ram:1048576");
    let device = FrontendDevice::new(machine.domain(GUEST), device);
    let raw: RawFrontend = RawFrontend::connect(device, key::PROTOCOL_X86_64, false);
    raw.device.switch(XenbusState::Connected);
    back.stop();
    // Behind the page that says whose log it is.
    let offset = PAGE_SIZE as u64 + offset;
    let log = inflight_dir.path().join(format!("vbd-{GUEST}-{XVDA}"));
    let log = std::fs::File::options().read(true).write(true).open(log).unwrap();
    let mut word = [0; 4];
    log.read_exact_at(&mut word, offset).unwrap();
    assert_eq!(word, found.to_le_bytes());
    log.write_all_at(&written.to_le_bytes(), offset).unwrap();

    let _back = start(&machine, inflight_dir.path());
    // Waits for InitWait.
    let mut raw: RawFrontend = RawFrontend::connect(raw.device, key::PROTOCOL_X86_64, false);
    let read = raw.io(OP_READ, 1, 0, &[0]);
    raw.send(&[read]);
    assert_eq!(raw.receive(1)[0].status, Status::OKAY);
}

/// The version, a word of the log's head (inflight/src/log_memory.rs).
#[test]
fn log_of_a_later_version_has_its_frontend_connect_anew() {
    frontend_connects_anew_after(16, 2, 3);
}

/// The state of the log's first entry (inflight/src/inflight_log.rs).
#[test]
fn log_with_a_damaged_entry_has_its_frontend_connect_anew() {
    frontend_connects_anew_after(64, 0, 7);
}

/// As a stock guest on Xen does whose disk is mounted: Linux's blkfront is Closing then before 5.16.
#[test]
fn rings_of_a_frontend_that_has_refused_to_close_are_resumed_until_it_closes() {
    for refused_as in [XenbusState::Connected, XenbusState::Closing] {
        let inflight_dir = tempfile::tempdir().unwrap();
        let machine = Machine::new();
        let back = start(&machine, inflight_dir.path());
        let device = machine.attach_disk(GUEST, XVDA, "ram:1048576");
        let back_path = device.back_path();
        let front = FrontendDevice::new(machine.domain(GUEST), device.clone());
        let mut raw: RawFrontend = RawFrontend::connect(front, key::PROTOCOL_X86_64, false);
        raw.device.switch(XenbusState::Connected);
        machine.detach(&device);
        raw.device.switch(refused_as);
        back.stop();
        // Not notified: a successor looks at the ring.
        let read = raw.io(OP_READ, 1, 0, &[0]);
        assert!(raw.ring.push(&read));
        let _ = raw.ring.commit();
        let back = start(&machine, inflight_dir.path());
        assert_eq!(raw.receive(1)[0].status, Status::OKAY);
        assert_eq!(machine.state(&back_path), XenbusState::Closing);
        raw.device.switch(XenbusState::Closed);
        machine.wait_for_state(&back_path, XenbusState::Closed);
        back.stop();
    }
}

/// The successor has another offer: the connection keeps to the one that its frontend has seen.
fn start_offering_one(machine: &Machine, inflight_dir: &Path) -> Backend {
    let hv = machine.domain(DomId::DOM0);
    let mut driver = VbdDriver::new(hv.clone(), Arc::new(RebindableChannels(hv.clone())));
    driver.set_inflight_dir(InflightDir::new(inflight_dir).unwrap());
    Backend::start_with(driver, &hv)
}

fn names(inflight_dir: &Path) -> Vec<String> {
    let mut names = InflightDir::new(inflight_dir).unwrap().names().unwrap();
    names.sort();
    names
}

#[test]
fn rings_of_all_queues_are_resumed_by_a_successor() {
    let inflight_dir = tempfile::tempdir().unwrap();
    let machine = Machine::new();
    let back = start(&machine, inflight_dir.path());
    let device = machine.attach_disk(GUEST, XVDA, "ram:1048576");
    let device = FrontendDevice::new(machine.domain(GUEST), device);
    let mut queues: Vec<RawFrontend> = RawFrontend::connect_queues(&device, key::PROTOCOL_X86_64, 3);
    device.switch(XenbusState::Connected);
    let name = format!("vbd-{GUEST}-{XVDA}");
    assert_eq!(
        names(inflight_dir.path()),
        [name.clone(), format!("{name}-queue-1"), format!("{name}-queue-2")]
    );
    back.stop();
    // Not notified: a successor looks at each ring.
    for (number, queue) in queues.iter_mut().enumerate() {
        let requests: Vec<_> =
            (0..10 * number as u64).map(|id| queue.io(OP_READ, id, 8 * id, &[0])).collect();
        requests.iter().for_each(|request| assert!(queue.ring.push(request)));
        let _ = queue.ring.commit();
    }
    let back = start_offering_one(&machine, inflight_dir.path());
    for (number, queue) in queues.iter_mut().enumerate() {
        let responses = queue.receive(10 * number);
        assert!(responses.iter().all(|response| response.status == Status::OKAY));
    }
    assert_eq!(device.backend_state(), XenbusState::Connected);
    back.stop();
    // Of one of the rings the record is lost: none is resumed.
    std::fs::remove_file(inflight_dir.path().join(format!("{name}-queue-1"))).unwrap();
    let _back = start(&machine, inflight_dir.path());
    let queues: Vec<RawFrontend> = RawFrontend::connect_queues(&device, key::PROTOCOL_X86_64, 2);
    assert_eq!((queues.len(), names(inflight_dir.path()).len()), (2, 2));
}

/// A disk in memory whose backend was killed with one request taken, which `send` makes, and is served by a successor. `P` is what the
/// request needs while it is in flight.
fn resumed_with<P>(
    send: impl FnOnce(&RawFrontend) -> (Request, P),
) -> ((Machine, TempDir), Backend, RawFrontend, P) {
    let inflight_dir = tempfile::tempdir().unwrap();
    let machine = Machine::new();
    let released = Arc::new(AtomicBool::new(false));
    let hv = machine.domain(DomId::DOM0);
    let discard = Some(DiscardLimits { granularity: 512, alignment: 0 });
    let ram = RamDisk::new(DiskInfo { discard, ..DiskInfo::new(2048) }).unwrap();
    let disk: Arc<dyn Disk> = Arc::new(StuckDisk(ram, released.clone()));
    let mut driver = VbdDriver::with_opener(
        hv.clone(),
        Arc::new(RebindableChannels(hv.clone())),
        Box::new(move |_, _| Ok(disk.clone())),
    );
    driver.set_inflight_dir(InflightDir::new(inflight_dir.path()).unwrap());
    let back = Backend::start_with(driver, &hv);
    drop(hv);
    let device = machine.attach_disk(GUEST, XVDA, "ram:1048576");
    let device = FrontendDevice::new(machine.domain(GUEST), device);
    let mut raw: RawFrontend = RawFrontend::connect(device, key::PROTOCOL_X86_64, false);
    raw.device.switch(XenbusState::Connected);
    let (request, kept) = send(&raw);
    raw.send(&[request]);
    // Taken, recorded, and never answered: as if the process was killed, the log is copied while it has the request.
    let log = inflight_dir.path().join(format!("vbd-{GUEST}-{XVDA}"));
    let taken = || std::fs::read(&log).unwrap()[PAGE_SIZE + 12] == 1;
    let start_of_wait = std::time::Instant::now();
    while !taken() {
        assert!(start_of_wait.elapsed() < testkit::BOUND);
        std::thread::yield_now();
    }
    let copied = std::fs::read(&log).unwrap();
    let ring_page = raw.memory.clone();
    released.store(true, Ordering::Relaxed);
    back.stop();
    // The stopping backend has failed it: neither is its response in the ring nor its end in the log of the one that was killed.
    ring_abi::testing::words(&ring_page).store32(8, 0);
    std::fs::write(&log, copied).unwrap();
    let back = start(&machine, inflight_dir.path());
    ((machine, inflight_dir), back, raw, kept)
}

/// An indirect request is recorded as the ring has it: a successor fetches its segments again, from pages that are the request's until
/// it is answered.
#[test]
fn indirect_requests_are_resumed_with_their_segments() {
    let (_machine, _back, mut raw, _pages) = resumed_with(|raw| {
        raw.data.slice(0, PAGE_SIZE).unwrap().copy_from(&[9; PAGE_SIZE]);
        raw.indirect(OP_WRITE, 1, 0, &[raw.data.refs()[0]; 100])
    });
    let response = raw.receive(1)[0];
    assert_eq!((response.id, response.status, response.operation), (1, Status::OKAY, OP_WRITE));
    let read = raw.io(OP_READ, 2, 8 * 99, &[1]);
    assert!(raw.ring.push(&read));
    let _ = raw.ring.commit();
    assert_eq!(raw.receive(1)[0].status, Status::OKAY);
    let mut found = [0; PAGE_SIZE];
    raw.data.slice(PAGE_SIZE, PAGE_SIZE).unwrap().copy_to(&mut found);
    assert!(found == [9; PAGE_SIZE]);
    assert_eq!(raw.device.backend_state(), XenbusState::Connected);
}

/// To discard once more does no harm.
#[test]
fn discards_are_resumed() {
    let discard = Discard { flag: 0, handle: 0, id: 1, sector_number: 8, nr_sectors: 2040 };
    let (_machine, _back, mut raw, ()) = resumed_with(|_| (Request::Discard(discard), ()));
    let response = raw.receive(1)[0];
    assert_eq!((response.id, response.status, response.operation), (1, Status::OKAY, OP_DISCARD));
    assert_eq!(raw.device.backend_state(), XenbusState::Connected);
}

/// A disk whose engine carries out no operation, and drops all once it is told to.
struct StuckDisk(RamDisk, Arc<AtomicBool>);

impl Disk for StuckDisk {
    fn name(&self) -> String {
        "stuck".into()
    }
    fn info(&self) -> std::io::Result<DiskInfo> {
        self.0.info()
    }
    fn engine(&self, depth: usize) -> std::io::Result<Box<dyn Engine>> {
        let engine = self.0.engine(depth)?;
        Ok(Box::new(StuckEngine { held: Vec::new(), released: self.1.clone(), engine }))
    }
}

struct StuckEngine {
    held: Vec<IoRequest>,
    released: Arc<AtomicBool>,
    engine: Box<dyn Engine>,
}

impl Engine for StuckEngine {
    fn submit(&mut self, requests: &mut Vec<IoRequest>) {
        self.held.append(requests);
    }
    fn poll(&mut self, completions: &mut Vec<Completion>) -> std::io::Result<()> {
        if self.released.load(Ordering::Relaxed) {
            self.held.clear();
        }
        self.engine.poll(completions)
    }
    fn needs_poll(&self) -> bool {
        !self.held.is_empty()
    }
    fn fd(&self) -> std::os::fd::BorrowedFd<'_> {
        self.engine.fd()
    }
}

/// What a program recorded that knew of one queue only: names and texts are part of what successors agree on.
#[test]
fn record_of_a_single_queue_is_the_one_of_earlier_versions() {
    let inflight_dir = tempfile::tempdir().unwrap();
    let machine = Machine::new();
    let _back = start(&machine, inflight_dir.path());
    let device = machine.attach_disk(GUEST, XVDA, "ram:1048576");
    let device = FrontendDevice::new(machine.domain(GUEST), device);
    let raw: RawFrontend = RawFrontend::connect(device, key::PROTOCOL_X86_64, false);
    assert_eq!(names(inflight_dir.path()), [format!("vbd-{GUEST}-{XVDA}")]);
    let file = std::fs::read(inflight_dir.path().join(format!("vbd-{GUEST}-{XVDA}"))).unwrap();
    let gref = raw.memory.refs()[0].0;
    let text = format!("X86_64 ring of grants [{gref}], event channel {}", raw.channel.port());
    assert!(file.starts_with(text.as_bytes()) && file[text.len()] == 0);
}

/// Event channels that an earlier backend's process still has: the first three times.
struct BusyChannels(Arc<Domain>, Arc<AtomicU32>);

impl EventChannels for BusyChannels {
    type Channel = Box<dyn WaitChannel>;

    fn alloc_unbound(&self, peer: DomId) -> event_channel::Result<Box<dyn WaitChannel>> {
        self.0.alloc_unbound(peer)
    }
    fn bind_interdomain(&self, peer: DomId, port: EventPort) -> event_channel::Result<Box<dyn WaitChannel>> {
        match self.1.fetch_add(1, Ordering::Relaxed) {
            0..3 => Err(event_channel::Error::NoSuchPort { peer, port }),
            _ => self.0.bind_interdomain(peer, port),
        }
    }
}

#[test]
fn ring_offered_to_a_backend_that_was_killed_is_tried_again() {
    let machine = Machine::new();
    let hv = machine.domain(DomId::DOM0);
    let tries = Arc::new(AtomicU32::new(0));
    let _back = Backend::start_with(
        VbdDriver::new(hv.clone(), Arc::new(BusyChannels(hv.clone(), tries.clone()))),
        &hv,
    );
    let device = machine.attach_disk(GUEST, XVDA, "ram:1048576");
    let device = FrontendDevice::new(machine.domain(GUEST), device);
    let raw: RawFrontend = RawFrontend::connect(device, key::PROTOCOL_X86_64, false);
    raw.device.wait_for_backend(XenbusState::Connected);
    assert_eq!(tries.load(Ordering::Relaxed), 4);
}
