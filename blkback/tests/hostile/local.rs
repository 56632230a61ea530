//! The attacks' world in threads: a machine on the local hypervisor, with a guest that attacks and one that does not.

use std::sync::Arc;

use crate::World;
use crate::common::raw::{Raw, Seat};
use crate::common::{Back, GUEST, Machine, XVDA};
use blkback::{DataPath, Tuning, VbdDriver};
use hypervisor::local::Domain;
use hypervisor::{Access, DomId, Hypervisor};
use xenstore::xenbus::Device;
use xenstore::{Nodes, XenbusState};

const OTHER: DomId = DomId(2);

struct Threads {
    attacker: Arc<Domain>,
    other: Seat,
    device: Device,
    // Ends before the store does.
    back: Option<Back>,
    machine: Machine,
}

/// `persistent`: pages stay mapped, as the frontend asks for.
pub(crate) fn world(persistent: bool) -> Option<Box<dyn World>> {
    let machine = Machine::new();
    let hv = machine.domain(DomId::DOM0);
    let mut driver = VbdDriver::new(hv.clone());
    let data_path = if persistent { DataPath::Persistent } else { DataPath::Map };
    driver.set_tuning(Tuning { data_path, ..Tuning::default() });
    let back = Some(machine.back_with(driver, hv));
    let params = [("params", "ram:1048576")];
    let device = machine.attach(GUEST, XVDA, &params);
    let other = Seat { device: machine.attach(OTHER, XVDA, &params), hv: machine.domain(OTHER), persistent };
    let attacker = machine.domain(GUEST);
    Some(Box::new(Threads { attacker, other, device, back, machine }))
}

impl World for Threads {
    fn seat(&self) -> Seat {
        Seat { hv: self.attacker.clone(), device: self.device.clone(), persistent: self.other.persistent }
    }

    fn other(&self) -> Seat {
        self.other.clone()
    }

    fn is_closed(&self, words: &str) {
        self.machine.await_state(&self.device.back_path(), XenbusState::Closing);
        let node = format!("/local/domain/0/error/backend/vbd/{GUEST}/{XVDA}/error");
        let error = self.machine.tool().read_text(&node).unwrap();
        assert!(error.contains(words), "{error}");
    }

    fn wakeups(&self) -> Option<u64> {
        let registry = self.back.as_ref()?.registry.lock().unwrap();
        Some(registry[&(GUEST, XVDA)].wakeups())
    }

    fn nothing_is_held(&mut self, raw: Raw) {
        self.back.take().unwrap().stop();
        drop(raw);
        // What is quarantined is looked at again when pages are wanted.
        drop(self.attacker.share(DomId::DOM0, 1, Access::ReadWrite).unwrap());
        assert_eq!(self.attacker.quarantined(DomId::DOM0), 0);
    }
}
