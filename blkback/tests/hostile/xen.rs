//! The attacks' world on a real Xen host: this program runs in a guest and attacks the backend in dom0.
//!
//! `XPV_VBDS=51712/51728` names the device to attack and the other; with `XPV_PERSISTENT` the frontend claims to use
//! the same pages again, so that they stay mapped. What only dom0 can see is left to the scenario:
//! lines `closed DEVICE: WORDS` say what its backend must have told.

use std::sync::Arc;

use crate::World;
use crate::common::raw::{Raw, Seat};
use hypervisor::Hypervisor;
use hypervisor::xen::Xen;
use xenstore::xenbus::Device;
use xenstore::{Nodes, XenbusState};

struct Guest {
    seat: Seat,
    other: Seat,
}

pub(crate) fn world() -> Option<Box<dyn World>> {
    let named = std::env::var("XPV_VBDS").ok()?;
    let (attacked, other) = named.split_once('/').expect("XPV_VBDS is DEVICE/DEVICE");
    let persistent = std::env::var_os("XPV_PERSISTENT").is_some();
    let hv: Arc<dyn Hypervisor> = Arc::new(Xen::open().expect("the device nodes"));
    let seat = |id: &str| {
        let device = Device::new("vbd", hv.domid(), id.parse().expect("a device's number"));
        Seat { hv: hv.clone(), device, persistent }
    };
    let guest = Guest { seat: seat(attacked), other: seat(other) };
    guest.start_again();
    Some(Box::new(guest))
}

impl Guest {
    /// Whatever the last attack left.
    fn start_again(&self) {
        self.close();
        for key in self.seat.store().directory(&self.seat.device.front_path()).unwrap() {
            let of_a_ring = ["ring-", "num-ring", "event-channel", "protocol"];
            if of_a_ring.iter().any(|start| key.starts_with(start)) {
                self.seat.remove(&key);
            }
        }
        self.seat.set("state", 1);
    }

    /// As a frontend that has let go of its ring does.
    fn close(&self) {
        let path = format!("{}/state", self.seat.device.back_path());
        let unused = [Some(XenbusState::InitWait), Some(XenbusState::Closed)];
        if !unused.contains(&self.seat.store().read_opt_as(&path).unwrap()) {
            self.seat.set("state", 6);
            self.seat.await_back(XenbusState::Closed);
        }
    }
}

impl World for Guest {
    fn seat(&self) -> Seat {
        self.seat.clone()
    }

    fn other(&self) -> Seat {
        self.other.clone()
    }

    fn is_closed(&self, words: &str) {
        self.seat.await_back(XenbusState::Closing);
        println!("\nclosed {}: {words}", self.seat.device.back_path());
    }

    /// It is another domain's.
    fn wakeups(&self) -> Option<u64> {
        None
    }

    /// The kernel does not say whether pages are still mapped; the scenario sees whether the domain can end.
    fn nothing_is_held(&mut self, raw: Raw) {
        self.close();
        drop(raw);
    }
}
