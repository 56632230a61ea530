//! What a successor of a backend does with the rings that it finds: it resumes all of them, or has the frontend connect anew.

use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use blkback::VbdDriver;
use event_channel::{Channel, EventChannels, WaitChannel};
use hypervisor::local::Domain;
use inflight::InflightDir;
use ring_abi::blkif::{OP_READ, Status, key};
use ring_abi::{DomId, EventPort, PAGE_SIZE};
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
