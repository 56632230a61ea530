//! The guests: domains of this process on a machine of xpv's processes, as `xpv create` makes them.

use crate::xpv::Machine;
use blkfront::Disk;
use hypervisor::local::Domain;
use netfront::Nic;
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use nix::unistd::geteuid;
use ring_abi::DomId;
use ring_abi::netif::Mac;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use testkit::block::XVDA;
use toolstack::dir::Dir;
use toolstack::machine::attached::{self, Attached};
use toolstack::machine::device::NewDevice;
use toolstack::machine::{Machine as Toolstack, domain, vbd, vif};

/// Bytes of a guest's disk.
const IMAGE: u64 = 4 << 20;
/// Descriptors that each process of the machine is to have for a guest, at least.
const DESCRIPTORS_OF_A_GUEST: u64 = 64;

/// A guest whose devices are connected.
pub(super) struct Guest {
    pub(super) disk: Disk,
    _nic: Nic,
    pub(super) domain: Arc<Domain>,
}

/// All guests, and what they run on; dropped in this order.
pub(super) struct Population {
    pub(super) guests: Vec<Guest>,
    pub(super) toolstack: Toolstack,
    images: tempfile::TempDir,
    machine: Machine,
}

/// What failed, in words.
pub(super) fn text(error: impl std::fmt::Display) -> String {
    error.to_string()
}

impl Population {
    /// Starts a machine without guests.
    ///
    /// # Errors
    /// It does not start.
    pub(super) fn start(xpv: &Path) -> Result<Population, String> {
        allow_descriptors();
        let machine = Machine::start(xpv)?;
        let dir = Dir::choose(Some(&machine.directory())).map_err(text)?;
        let toolstack = Toolstack::connect(&dir).map_err(text)?;
        let images = tempfile::Builder::new().prefix("xpv-bench").tempdir_in("/dev/shm");
        let images = images.map_err(|e| format!("a directory for images in /dev/shm: {e}"))?;
        Ok(Population { guests: Vec::new(), toolstack, images, machine })
    }

    /// The process of dom0.
    pub(super) fn dom0(&self) -> u32 {
        self.machine.dom0()
    }

    /// Creates guests until there are so many.
    ///
    /// # Errors
    /// One is not created, or its devices do not connect.
    pub(super) fn grow(&mut self, guests: usize) -> Result<(), String> {
        while self.guests.len() < guests {
            let number = self.guests.len();
            let guest = self.create(number).map_err(|why| {
                let log = self.machine.log();
                format!("guest {number} of {guests}: {why}; the log ends: {log}")
            })?;
            self.guests.push(guest);
        }
        Ok(())
    }

    fn create(&mut self, number: usize) -> Result<Guest, String> {
        let name = format!("guest{number}");
        let uid = geteuid().as_raw();
        let domid = self.toolstack.control.create(&name, uid, None).map_err(text)?;
        let uuid = format!("{number:08x}-0000-4000-8000-000000000000");
        domain::add(&mut self.toolstack.store, domid, &name, &uuid).map_err(text)?;
        self.attach(&self.disk_nodes(domid, XVDA)?)?;
        self.attach(&interface_nodes(domid, 0))?;
        let domain = Arc::new(Domain::join(self.toolstack.dir.path(), domid).map_err(text)?);
        let disk = open_disk(&domain, XVDA, blkfront::Options::default())?;
        let nic = open_interface(&domain, 0)?;
        Ok(Guest { disk, _nic: nic, domain })
    }

    /// Writes the nodes of a device.
    ///
    /// # Errors
    /// What the toolstack says.
    pub(super) fn attach(&mut self, new: &NewDevice) -> Result<Attached, String> {
        attached::add(&mut self.toolstack.store, new).map_err(text)
    }

    /// The nodes of a disk with an image of its own, which is made if it does not exist.
    ///
    /// # Errors
    /// There is no room for the image.
    pub(super) fn disk_nodes(&self, domid: DomId, devid: u32) -> Result<NewDevice, String> {
        let image: PathBuf = self.images.path().join(format!("{domid}-{devid}.img"));
        let made = File::options().write(true).create(true).truncate(false).open(&image);
        made.and_then(|file| file.set_len(IMAGE)).map_err(|e| format!("{}: {e}", image.display()))?;
        Ok(vbd::nodes(domid, &testkit::block::disk(devid, &image.display().to_string())))
    }
}

/// The nodes of an interface on dom0's bridge.
pub(super) fn interface_nodes(domid: DomId, devid: u32) -> NewDevice {
    let [high, low] = domid.0.to_be_bytes();
    vif::nodes(domid, &testkit::net::vif(), devid, Mac::xen([high, low, devid as u8]))
}

/// Opens a guest's disk, and waits until it is connected.
///
/// # Errors
/// It does not connect.
pub(super) fn open_disk(
    domain: &Arc<Domain>,
    devid: u32,
    options: blkfront::Options,
) -> Result<Disk, String> {
    Disk::open_with(domain.clone(), domain.clone(), domain.clone(), devid, options).map_err(text)
}

/// Opens a guest's interface, and waits until it is connected.
///
/// # Errors
/// It does not connect.
pub(super) fn open_interface(domain: &Arc<Domain>, devid: u32) -> Result<Nic, String> {
    let config = netfront::Config::default();
    let mut nic = Nic::open(domain.clone(), domain.clone(), domain.clone(), devid, config).map_err(text)?;
    let start = std::time::Instant::now();
    while !nic.is_up() {
        if start.elapsed() > crate::process::BOUND {
            return Err("its interface does not connect".to_owned());
        }
        nic.wait(false, std::time::Duration::from_secs(1)).map_err(text)?;
    }
    Ok(nic)
}

/// Raises the limit of descriptors of this process and of those that it starts, where it may.
fn allow_descriptors() {
    let wanted = DESCRIPTORS_OF_A_GUEST * super::GUESTS as u64;
    let Ok((soft, hard)) = getrlimit(Resource::RLIMIT_NOFILE) else { return };
    if soft < wanted && setrlimit(Resource::RLIMIT_NOFILE, wanted.max(hard), wanted.max(hard)).is_err() {
        // What then is missing, the process says that misses it.
        let _ = setrlimit(Resource::RLIMIT_NOFILE, hard, hard);
    }
}
