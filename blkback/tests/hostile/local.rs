//! The platform in threads: a machine on the local hypervisor with the attacking guest and one other guest.

use std::sync::Arc;

use crate::Platform;
use blkback::{DataPath, Tuning, VbdDriver};
use grant_table::{Access, GrantTable};
use hypervisor::local::Domain;
use ring_abi::DomId;
use testkit::block::{Backend, GUEST, RawFrontend, XVDA};
use testkit::{FrontendDevice, Machine};
use xenbus::{Device, XenbusState};

const OTHER: DomId = DomId(2);

struct Threads {
    attacker: Arc<Domain>,
    device: Device,
    other: FrontendDevice,
    persistent: bool,
    // Dropped before the store.
    backend: Option<Backend>,
    machine: Machine,
}

/// `persistent`: the backend keeps pages mapped, as the frontend requests.
pub(crate) fn platform(persistent: bool) -> Box<dyn Platform> {
    let machine = Machine::new();
    let dom0 = machine.domain(DomId::DOM0);
    let mut driver = VbdDriver::new(dom0.clone(), dom0.clone());
    let data_path = if persistent { DataPath::Persistent } else { DataPath::Map };
    driver.set_tuning(Tuning { data_path, ..Tuning::default() });
    driver.set_max_queues(3);
    let backend = Some(Backend::start_with(driver, &dom0));
    let attach = |domid| machine.attach_disk(domid, XVDA, "ram:1048576");
    let device = attach(GUEST);
    let other = FrontendDevice::new(machine.domain(OTHER), attach(OTHER));
    let attacker = machine.domain(GUEST);
    Box::new(Threads { attacker, device, other, persistent, backend, machine })
}

impl Platform for Threads {
    fn attacked(&self) -> FrontendDevice {
        FrontendDevice::new(self.attacker.clone(), self.device.clone())
    }

    fn other(&self) -> FrontendDevice {
        self.other.clone()
    }

    fn persistent(&self) -> bool {
        self.persistent
    }

    fn assert_closed(&self, words: &str) {
        self.machine.wait_for_state(&self.device.back_path(), XenbusState::Closing);
        let error = self.machine.backend_error(&self.device).unwrap();
        assert!(error.contains(words), "{error}");
    }

    fn wakeups(&self) -> Option<u64> {
        let device = self.backend.as_ref()?.registry.get((GUEST, XVDA))?;
        device.stats?.snapshot().wakeups
    }

    fn assert_unmapped(&mut self, raw: RawFrontend) {
        self.backend.take().unwrap().stop();
        drop(raw);
        // Quarantined pages are checked again when pages are granted.
        drop(self.attacker.share(DomId::DOM0, 1, Access::ReadWrite).unwrap());
        assert_eq!(self.attacker.quarantined(DomId::DOM0), 0);
    }
}
