//! The attacks' platform on a real Xen host: this program runs in a guest and attacks the backend in dom0.
//!
//! `XPV_VBDS=51712/51728` names the device to attack and the other; with `XPV_PERSISTENT` the frontend claims to use
//! the same pages again, so that they stay mapped. What only dom0 can see is left to the scenario:
//! lines `closed DEVICE: WORDS` give the error that its backend must have logged.

use crate::Platform;
use testkit::FrontendDevice;
use testkit::block::RawFrontend;
use xenbus::XenbusState;
use xenstore::Nodes;

struct Guest {
    attacked: FrontendDevice,
    other: FrontendDevice,
    persistent: bool,
}

pub(crate) fn platform() -> Box<dyn Platform> {
    let devices = FrontendDevice::of_xen_guest("vbd", "XPV_VBDS");
    let [attacked, other] = <[_; 2]>::try_from(devices).ok().expect("XPV_VBDS is DEVICE/DEVICE");
    let persistent = std::env::var_os("XPV_PERSISTENT").is_some();
    reset(&attacked);
    Box::new(Guest { attacked, other, persistent })
}

/// Removes whatever the last attack left.
fn reset(device: &FrontendDevice) {
    device.close();
    for key in device.store().directory(&device.device.front_path()).unwrap() {
        let of_a_ring = ["ring-", "num-ring", "event-channel", "protocol"];
        if of_a_ring.iter().any(|start| key.starts_with(start)) {
            device.remove(&key);
        }
    }
    device.set("state", 1);
}

impl Platform for Guest {
    fn attacked(&self) -> FrontendDevice {
        self.attacked.clone()
    }

    fn other(&self) -> FrontendDevice {
        self.other.clone()
    }

    fn persistent(&self) -> bool {
        self.persistent
    }

    fn is_closed(&self, words: &str) {
        self.attacked.wait_for_backend(XenbusState::Closing);
        println!("\nclosed {}: {words}", self.attacked.device.back_path());
    }

    /// It is another domain's.
    fn wakeups(&self) -> Option<u64> {
        None
    }

    /// The kernel does not say whether pages are still mapped; the scenario sees whether the domain can end.
    fn nothing_is_held(&mut self, raw: RawFrontend) {
        self.attacked.close();
        drop(raw);
    }
}
