//! `xpv network-attach`: attaches a network interface to a running guest.

use std::time::Duration;

use ring_abi::netif::Mac;

use crate::config::{DeviceNic, VifSpec, Warnings, json};
use crate::dir::Dir;
use crate::error::{Origin, Result};
use crate::machine::{Machine, attached, guest, progress, vif};
use crate::output;

/// Attach a network interface to a running guest
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The guest's name or domain ID
    domain: String,

    /// The interface in the syntax of xl-network-configuration(5): mac=00:16:3e:01:02:03,bridge=xenbr0, in one argument or several
    #[arg(value_name = "VIF")]
    vif: Vec<String>,

    /// How long the interface may take to connect, in seconds
    #[arg(long, value_name = "SECONDS", default_value_t = 20)]
    timeout: u64,
}

/// Parses the interface as xl does, and prints it as `xl -N network-attach` does.
///
/// # Errors
/// The interface's configuration is invalid.
pub fn dry_run(args: &Args) -> Result<()> {
    let nic = DeviceNic::parse(&Origin::argument("VIF"), &args.vif)?;
    output::line(format_args!("vif: {}", json::to_string(&nic)?))
}

/// Attaches the interface.
///
/// # Errors
/// The interface's configuration is invalid, or it cannot be connected; its nodes have been removed then.
pub fn run(args: &Args, dir: &Dir) -> Result<()> {
    let origin = Origin::argument("VIF");
    let mut warnings = Warnings::default();
    let spec = VifSpec::parse(&origin, &args.vif, &mut warnings)?;
    warnings.show();
    let mut machine = Machine::connect(dir)?;
    let domain = machine.find_guest(&args.domain)?;
    machine.await_dom0()?;
    guest::check_bridge(&mut machine, &origin, &spec.bridge)?;
    let mac = spec.mac.unwrap_or_else(|| Mac::xen(rand::random()));
    let nodes = |devid| vif::nodes(domain.domid, &spec, devid, mac);
    let attached = match spec.devid {
        Some(devid) => attached::add(&mut machine.store, &nodes(devid))?,
        None => attached::add_with_free_number(&mut machine.store, domain.domid, "vif", nodes)?,
    };
    progress::wait_attached(&mut machine.store, dir, &attached, Duration::from_secs(args.timeout))
}
