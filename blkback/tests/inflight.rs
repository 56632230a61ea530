//! The files in which requests in flight are recorded: kept for a successor, and removed with the ring that they belong to.

use std::time::Instant;

use blkback::VbdDriver;
use inflight::InflightDir;
use ring_abi::DomId;
use ring_abi::blkif::{X86_64, key};
use tempfile::TempDir;
use testkit::block::{Backend, GUEST, RawFrontend, XVDA};
use testkit::{BOUND, FrontendDevice, Machine};
use xenbus::XenbusState;

struct Setup {
    device: FrontendDevice,
    machine: Machine,
    dir: InflightDir,
    temporary: TempDir,
}

fn setup() -> Setup {
    let temporary = tempfile::tempdir().unwrap();
    let dir = InflightDir::new(temporary.path()).unwrap();
    let machine = Machine::new();
    let device = machine.attach_disk(GUEST, XVDA, "ram:1048576");
    let device = FrontendDevice::new(machine.domain(GUEST), device);
    Setup { device, machine, dir, temporary }
}

impl Setup {
    /// Starts a backend that records requests in flight.
    fn start(&self) -> Backend {
        let dom0 = self.machine.domain(DomId::DOM0);
        let mut driver = VbdDriver::new(dom0.clone(), dom0.clone());
        driver.set_inflight_dir(self.dir.clone());
        Backend::start_with(driver, &dom0)
    }

    fn back_state(&self) -> XenbusState {
        self.machine.state(&self.device.device.back_path())
    }

    fn is_recorded(&self) -> bool {
        !self.dir.names().unwrap().is_empty()
    }
}

fn wait_until(is: impl Fn() -> bool) {
    let started = Instant::now();
    while !is() {
        assert!(started.elapsed() < BOUND);
        std::thread::yield_now();
    }
}

#[test]
fn record_of_a_ring_that_cannot_be_mapped_is_removed() {
    let setup = setup();
    let _back = setup.start();
    setup.device.wait_for_backend(XenbusState::InitWait);
    setup.device.set(key::RING_REF, 4_000_000);
    setup.device.set(key::EVENT_CHANNEL, 1);
    setup.device.switch(XenbusState::Initialised);
    setup.device.wait_for_backend(XenbusState::Closing);
    assert!(setup.machine.backend_error(&setup.device.device).unwrap().contains("mapping the ring"));
    assert!(!setup.is_recorded());
}

#[test]
fn device_without_room_for_its_record_fails_alone() {
    let setup = setup();
    // What is in the way, as a full file system is.
    std::fs::create_dir(setup.temporary.path().join(format!("vbd-{GUEST}-{XVDA}.part"))).unwrap();
    let other = DomId(GUEST.0 + 1);
    let disk = setup.machine.attach_disk(other, XVDA, "ram:1048576");
    let other = FrontendDevice::new(setup.machine.domain(other), disk);
    let _back = setup.start();
    setup.device.wait_for_backend(XenbusState::InitWait);
    setup.device.set(key::RING_REF, 8);
    setup.device.set(key::EVENT_CHANNEL, 1);
    setup.device.switch(XenbusState::Initialised);
    setup.device.wait_for_backend(XenbusState::Closing);
    let error = setup.machine.backend_error(&setup.device.device).unwrap();
    assert!(error.contains(&format!("vbd-{GUEST}-{XVDA}")), "{error}");
    let _front: RawFrontend<X86_64> = RawFrontend::connect(other, "x86_64-abi", false);
}

/// A process that is being killed closes its files before its event channels.
#[test]
fn event_channel_of_an_earlier_process_is_waited_for_while_the_frontend_is_connected() {
    let setup = setup();
    let back = setup.start();
    let _front: RawFrontend<X86_64> = RawFrontend::connect(setup.device.clone(), "x86_64-abi", false);
    setup.device.switch(XenbusState::Connected);
    back.stop();
    assert!(setup.is_recorded());
    // On this hypervisor the port is never free again.
    let back = setup.start();
    let error = || back.registry.of_domain(GUEST).into_iter().find_map(|info| info.error).unwrap_or_default();
    wait_until(|| !error().is_empty() || setup.back_state() != XenbusState::Connected);
    assert!(error().starts_with("waits: binding the event channel"), "{}", error());
    assert_eq!(setup.back_state(), XenbusState::Connected);
    assert!(setup.is_recorded());
    // Nor does it wait for the port of a frontend that has closed.
    setup.device.switch(XenbusState::Closed);
    wait_until(|| error().is_empty());
    setup.machine.remove(&setup.device.device);
    wait_until(|| !setup.is_recorded());
}
