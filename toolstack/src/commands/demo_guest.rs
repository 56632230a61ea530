//! `xpv demo-guest`: the process of a guest of the demo.

use std::sync::Arc;

use hypervisor::Hypervisor;
use hypervisor::local::Domain;
use ring_abi::blkif::vdev::Vdev;

use crate::demo::guest;
use crate::dir::Dir;
use crate::error::Result;
use crate::machine::Machine;

/// Run as a guest of the demo: commands on standard input, events on standard output
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The guest's name or domain ID
    name: String,
}

/// Runs the guest.
///
/// # Errors
/// The first error of a device or a command.
pub fn run(args: &Args, dir: &Dir) -> Result<()> {
    let info = Machine::connect(dir)?.find_guest(&args.name)?;
    let hv: Arc<dyn Hypervisor> = Arc::new(Domain::join(dir.path(), info.domid)?);
    let vdev = Vdev::xvd(0, 0).map_or(0, Vdev::number);
    guest::run(&hv, vdev, std::io::stdin().lock(), std::io::stdout())
}
