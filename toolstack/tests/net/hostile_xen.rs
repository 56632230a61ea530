//! The attacks' world on a real Xen host: this program runs in a guest, and attacks the backend in dom0.
//!
//! `XPV_VIFS=0/1/2` names the vif to attack with and two honest ones on the same bridge. What only dom0 can see is
//! left to the scenario: lines `closed DEVICE: WORDS` say what its backend must have told.

use super::{World, open};
use crate::raw::Seat;
use hypervisor::Hypervisor;
use hypervisor::xen::Xen;
use netfront::Nic;
use std::sync::Arc;
use xenstore::XenbusState;
use xenstore::xenbus::Device;

struct Guest {
    seat: Seat,
    honest: [Nic; 2],
}

pub(super) fn world() -> Option<Box<dyn World>> {
    let named = std::env::var("XPV_VIFS").ok()?;
    let hv: Arc<dyn Hypervisor> = Arc::new(Xen::open().expect("the device nodes"));
    let seats: Vec<Seat> = named
        .split('/')
        .map(|id| {
            let device = Device::new("vif", hv.domid(), id.parse().expect("a vif's number"));
            Seat { hv: hv.clone(), device }
        })
        .collect();
    let [seat, a, b] = <[Seat; 3]>::try_from(seats).ok().expect("XPV_VIFS is VIF/VIF/VIF");
    seat.start_again();
    Some(Box::new(Guest { seat, honest: [&a, &b].map(open) }))
}

impl World for Guest {
    fn seat(&self) -> Seat {
        self.seat.clone()
    }

    fn honest(&mut self) -> &mut [Nic; 2] {
        &mut self.honest
    }

    fn is_closed(&self, words: &str) {
        self.seat.await_back(XenbusState::Closing);
        println!("\nclosed {}: {words}", self.seat.device.back_path());
    }

    /// The bridge is another domain's.
    fn dropped(&self) -> Option<u64> {
        None
    }
}
