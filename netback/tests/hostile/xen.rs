//! The attacks' platform on a real Xen host: this program runs in a guest, and attacks the backend in dom0.
//!
//! `XPV_VIFS=0/1/2` names the vif to attack with and two of guests that do no harm, on the same bridge. What only dom0
//! can see is left to the scenario: lines `closed DEVICE: WORDS` give the error that its backend must have logged.

use super::{Platform, open};
use netfront::Nic;
use testkit::FrontendDevice;
use testkit::net::RawFrontend;
use xenbus::XenbusState;

struct Guest {
    attacked: FrontendDevice,
    honest: [Nic; 2],
}

pub(super) fn platform() -> Box<dyn Platform> {
    let devices = FrontendDevice::of_xen_guest("vif", "XPV_VIFS");
    let [attacked, a, b] = <[_; 3]>::try_from(devices).ok().expect("XPV_VIFS is VIF/VIF/VIF");
    RawFrontend::reset(&attacked);
    Box::new(Guest { attacked, honest: [&a, &b].map(open) })
}

impl Platform for Guest {
    fn attacked(&self) -> FrontendDevice {
        self.attacked.clone()
    }

    fn honest(&mut self) -> &mut [Nic; 2] {
        &mut self.honest
    }

    fn is_closed(&self, words: &str) {
        self.attacked.wait_for_backend(XenbusState::Closing);
        println!("\nclosed {}: {words}", self.attacked.device.back_path());
    }

    /// The bridge is another domain's.
    fn dropped(&self) -> Option<u64> {
        None
    }
}
