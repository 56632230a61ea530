//! Disks: a backend in a thread, frontends, and ends whose rings the test drives.

mod fixed_time_disk;
mod raw_backend;
mod raw_frontend;

pub use fixed_time_disk::FixedTimeDisk;
pub use raw_backend::RawBackend;
pub use raw_frontend::RawFrontend;
pub use toolstack::config::{DiskLimits, DiskSpec};

use crate::{BOUND, DriverThread, Machine};
use blkback::VbdDriver;
use blkback::engine::format::Format;
use blkfront::{Completion, Disk, Options};
use hypervisor::local::Domain;
use ring_abi::DomId;
use ring_abi::blkif::vdev::Vdev;
use std::sync::Arc;
use toolstack::machine::vbd;
use xenbus::Device;
use xenbus::driver::Registry;
use xenstore::Client;

/// The guest in most disk tests.
pub const GUEST: DomId = DomId(1);
/// The device number of the disk xvda (xen-vbd-interface.7).
pub const XVDA: u32 = 51712;

/// Describes a writable disk with this target: an image's path, or an engine as in `ram:1048576`.
pub fn disk(devid: u32, target: &str) -> DiskSpec {
    DiskSpec {
        target: Some(target.into()),
        format: Format::Raw,
        dev: Vdev::from_number(devid).to_string(),
        vdev: devid,
        writable: true,
        shared: false,
        cdrom: false,
        discard: true,
        detect_zeroes: false,
        direct_io_safe: false,
        trusted: true,
        script: None,
        limits: DiskLimits::default(),
    }
}

impl Machine {
    /// Attaches a writable disk with this target: an image's path, or an engine as in `ram:1048576`.
    pub fn attach_disk(&self, domid: DomId, devid: u32, target: &str) -> Device {
        self.attach_disk_as(domid, &disk(devid, target))
    }

    /// Attaches a disk, with the nodes that libxl writes.
    pub fn attach_disk_as(&self, domid: DomId, disk: &DiskSpec) -> Device {
        self.attach(vbd::nodes(domid, disk))
    }
}

/// Waits for so many completions, each within [`BOUND`] of the one before it.
///
/// # Panics
/// If one takes longer.
pub fn wait_for(disk: &mut Disk, count: usize) -> Vec<Completion> {
    let mut done = Vec::new();
    while done.len() < count {
        let before = std::time::Instant::now();
        let more = disk.wait(&mut done, Some(BOUND)).unwrap();
        assert!(more > 0 || before.elapsed() < BOUND, "no completion within {BOUND:?}");
    }
    done
}

/// A block backend in dom0, in a thread.
pub struct Backend {
    /// The devices that the backend serves.
    pub registry: Registry,
    driver: DriverThread,
}

impl Backend {
    /// Joins as dom0 and serves its disks with the default driver.
    pub fn start(machine: &Machine) -> Backend {
        Backend::start_as(&machine.domain(DomId::DOM0))
    }

    /// Serves dom0's disks with the default driver.
    pub fn start_as(dom0: &Arc<Domain>) -> Backend {
        Backend::start_with(VbdDriver::new(dom0.clone(), dom0.clone()), dom0)
    }

    /// Serves dom0's disks with this driver.
    pub fn start_with(driver: VbdDriver, dom0: &Arc<Domain>) -> Backend {
        let client = Client::connect(&dom0).unwrap();
        let registry = Registry::default();
        let driver = DriverThread::spawn_registered(client, registry.clone(), move || driver);
        Backend { registry, driver }
    }

    /// Stops the backend and closes all its devices.
    pub fn stop(self) {
        self.driver.stop();
    }
}

/// The default options, with [`BOUND`] as the timeout.
pub fn options() -> Options {
    Options { timeout: BOUND, ..Options::default() }
}

/// Opens the guest's xvda; panics if that fails.
pub fn open(guest: &Arc<Domain>, options: Options) -> Disk {
    try_open(guest, options).unwrap()
}

/// Opens the guest's xvda.
///
/// # Errors
/// Those of [`Disk::open_with`].
pub fn try_open(guest: &Arc<Domain>, options: Options) -> blkfront::Result<Disk> {
    Disk::open_with(guest.clone(), guest.clone(), guest.clone(), XVDA, options)
}
