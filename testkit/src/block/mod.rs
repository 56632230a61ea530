//! Disks: their backend, their frontends, and frontends by hand.

mod raw;

pub use raw::RawFrontend;
pub use toolstack::config::DiskSpec;

use crate::{BOUND, DriverThread, Machine};
use blkback::VbdDriver;
use blkback::vbd::Registry;
use blkfront::{Disk, Options};
use hypervisor::local::Domain;
use hypervisor::{DomId, Hypervisor};
use ring_abi::blkif::vdev::Vdev;
use std::sync::Arc;
use xenstore::Client;

/// The guest of most tests of disks.
pub const GUEST: DomId = DomId(1);
/// The number of the disk xvda (xen-vbd-interface.7).
pub const XVDA: u32 = 51712;

/// A writable disk over what `target` names: an image, or an engine as in `ram:1048576`.
pub fn disk(devid: u32, target: &str) -> DiskSpec {
    DiskSpec {
        target: target.into(),
        dev: Vdev::from_number(devid).to_string(),
        vdev: devid,
        writable: true,
        cdrom: false,
        discard: true,
        direct_io_safe: false,
        trusted: true,
    }
}

/// A block backend in dom0, in a thread.
pub struct Backend {
    /// The devices that it serves.
    pub registry: Registry,
    driver: DriverThread,
}

impl Backend {
    /// Joins as dom0 and serves its disks.
    pub fn start(machine: &Machine) -> Backend {
        let dom0 = machine.domain(DomId::DOM0);
        Backend::start_with(VbdDriver::new(dom0.clone()), &dom0)
    }

    /// Serves disks by this driver, as dom0.
    pub fn start_with(driver: VbdDriver, dom0: &Arc<Domain>) -> Backend {
        let registry = driver.registry();
        let client = Client::new(dom0.store().unwrap());
        Backend { registry, driver: DriverThread::spawn(client, move || driver) }
    }

    /// Ends the backend and all its devices.
    pub fn stop(self) {
        self.driver.stop();
    }
}

/// Default options but for how long a disk waits: [`BOUND`].
pub fn options() -> Options {
    Options { timeout: BOUND, ..Options::default() }
}

/// Opens the guest's xvda.
pub fn open(guest: &Arc<Domain>, options: Options) -> Disk {
    try_open(guest, options).unwrap()
}

/// Opens the guest's xvda, if it can be opened.
///
/// # Errors
/// As [`Disk::open_with`].
pub fn try_open(guest: &Arc<Domain>, options: Options) -> blkfront::Result<Disk> {
    let store = Client::new(guest.store().unwrap());
    Disk::open_with(guest.clone(), store, XVDA, options)
}
