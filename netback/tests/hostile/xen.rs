//! The platform on a real Xen host: this program runs in a guest and attacks the backend in dom0.
//!
//! `XPV_VIFS=0/1/2` gives the numbers of the attacker's vif and of two honest ones on the same bridge. The scenario checks
//! what only dom0 can see: for each line `closed DEVICE: WORDS` that is printed, the backend must have logged an error
//! with these words.

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

    fn assert_closed(&self, words: &str) {
        self.attacked.wait_for_backend(XenbusState::Closing);
        println!("\nclosed {}: {words}", self.attacked.device.back_path());
    }

    /// Not available: the bridge runs in another domain.
    fn dropped(&self) -> Option<u64> {
        None
    }
}
