//! The platform on a real Xen host: this program runs in a guest and attacks the backend in dom0.
//!
//! `XPV_VBDS=51712/51728` gives the numbers of the attacker's device and of the other. With `XPV_PERSISTENT` the frontend
//! advertises persistent grants, so that its pages stay mapped. The scenario checks what only dom0 can see: for each
//! line `closed DEVICE: WORDS` that is printed, the backend must have logged an error with these words.

use crate::Platform;
use ring_abi::blkif::key;
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

/// Closes the device and removes the keys of the last attack.
fn reset(device: &FrontendDevice) {
    device.close();
    for name in device.store().directory(&device.device.front_path()).unwrap() {
        let of_a_ring = ["ring-", "num-ring", "queue-", "multi-queue", key::EVENT_CHANNEL, key::PROTOCOL];
        if of_a_ring.iter().any(|start| name.starts_with(start)) {
            device.remove(&name);
        }
    }
    device.switch(XenbusState::Initialising);
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

    fn assert_closed(&self, words: &str) {
        self.attacked.wait_for_backend(XenbusState::Closing);
        println!("\nclosed {}: {words}", self.attacked.device.back_path());
    }

    /// Not available: the backend runs in another domain.
    fn wakeups(&self) -> Option<u64> {
        None
    }

    /// A guest cannot see whether its pages are mapped; the scenario checks that the domain can be destroyed.
    fn assert_unmapped(&mut self, raw: RawFrontend) {
        self.attacked.close();
        drop(raw);
    }
}
