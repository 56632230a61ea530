//! `xpv block-detach`: detaches a disk from a running guest.

use std::time::Duration;

use ring_abi::blkif::vdev::Vdev;
use xenbus::Device;

use crate::dir::Dir;
use crate::error::{Error, Origin, Result};
use crate::machine::attached::Attached;
use crate::machine::{Machine, progress};

/// Detach a disk from a running guest
///
/// Fails while an NBD client has the disk open: the guest then closes it once none has.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The guest's name or domain ID
    domain: String,

    /// The disk: its name in the guest, or its number
    vdev: String,

    /// Remove the disk even if it is in use, the guest does not close it, or dom0 is not running
    ///
    /// Fails if dom0 has not released the image of the removed disk yet: do not use it elsewhere then.
    #[arg(long)]
    force: bool,

    /// How long the guest may take to close the disk, in seconds
    #[arg(long, value_name = "SECONDS", default_value_t = 20)]
    timeout: u64,
}

/// Detaches the disk.
///
/// # Errors
/// There is no such disk, it is in use or not closed in time, or dom0 is not running; with `--force`, dom0 still has the image of
/// the disk that was removed.
pub fn run(args: &Args, dir: &Dir) -> Result<()> {
    let Some(vdev) = Vdev::parse(&args.vdev) else {
        return Err(Origin::argument("VDEV").invalid(
            "disk: vdev",
            &args.vdev,
            "a device name such as xvda, or a number",
        ));
    };
    let mut machine = Machine::connect(dir)?;
    let domain = machine.find_guest(&args.domain)?;
    let device = Device::new("vbd", domain.domid, vdev.number());
    let disk = Attached::find(&mut machine.store, &device)?;
    let disk = disk.ok_or_else(|| Error::Other(format!("{} has no disk {}", domain.name, args.vdev)))?;
    progress::detach(&mut machine, &disk, Duration::from_secs(args.timeout), args.force)
}
