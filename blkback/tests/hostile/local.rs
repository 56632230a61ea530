//! The attacks' world in threads: a machine on the local hypervisor, with a guest that attacks and one that does not.

use std::sync::Arc;

use crate::World;
use crate::common::raw::{Raw, Seat};
use crate::common::{Back, GUEST, Machine, XVDA};
use hypervisor::DomId;
use hypervisor::local::Domain;
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

pub(crate) fn world() -> Option<Box<dyn World>> {
    let machine = Machine::new();
    let back = Some(machine.back());
    let params = [("params", "ram:1048576")];
    let device = machine.attach(GUEST, XVDA, &params);
    let other = Seat { device: machine.attach(OTHER, XVDA, &params), hv: machine.domain(OTHER) };
    let attacker = machine.domain(GUEST);
    Some(Box::new(Threads { attacker, other, device, back, machine }))
}

impl World for Threads {
    fn seat(&self) -> Seat {
        Seat { hv: self.attacker.clone(), device: self.device.clone() }
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
        Some(registry[&(GUEST.0, XVDA)].wakeups())
    }

    fn nothing_is_held(&mut self, raw: Raw) {
        self.back.take().unwrap().stop();
        drop(raw);
        assert_eq!(self.attacker.quarantined(DomId::DOM0), 0);
    }
}
