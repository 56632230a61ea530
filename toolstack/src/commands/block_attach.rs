//! `xpv block-attach`: attaches a disk to a running guest.

use std::time::Duration;

use crate::config::{DeviceDisk, DiskSpec, Warnings, json};
use crate::dir::Dir;
use crate::error::{Origin, Result};
use crate::machine::{Machine, attached, progress, vbd};
use crate::output;

/// Attach a disk to a running guest
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The guest's name or domain ID
    domain: String,

    /// The disk in the syntax of xl-disk-configuration(5): format=raw,vdev=xvdb,access=rw,target=/path, in one argument or several
    #[arg(required = true, value_name = "DISK")]
    disk: Vec<String>,

    /// How long the disk may take to connect, in seconds
    #[arg(long, value_name = "SECONDS", default_value_t = 20)]
    timeout: u64,
}

/// Parses the disk as xl does, and prints it as `xl -N block-attach` does.
///
/// # Errors
/// The disk's configuration is invalid.
pub fn dry_run(args: &Args) -> Result<()> {
    let disk = DeviceDisk::parse(&Origin::argument("DISK"), &args.disk)?;
    output::line(format_args!("disk: {}", json::to_string(&disk)?))
}

/// Attaches the disk.
///
/// # Errors
/// The disk's configuration is invalid, or it cannot be connected; its nodes have been removed then.
pub fn run(args: &Args, dir: &Dir) -> Result<()> {
    let origin = Origin::argument("DISK");
    let mut warnings = Warnings::default();
    let disk = DiskSpec::parse(&origin, &args.disk, &mut warnings)?;
    warnings.show();
    vbd::check_target(&origin, &disk)?;
    let mut machine = Machine::connect(dir)?;
    let domain = machine.find_guest(&args.domain)?;
    machine.await_dom0()?;
    let attached = attached::add(&mut machine.store, &vbd::nodes(domain.domid, &disk))?;
    progress::wait_attached(&mut machine.store, dir, &attached, Duration::from_secs(args.timeout))
}
