//! A successor of a backend that cannot resume its ring has the frontend connect anew.

use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use blkback::VbdDriver;
use event_channel::{EventChannels, WaitChannel};
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
