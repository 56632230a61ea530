//! `xpv network-detach`: detaches a network interface from a running guest.

use std::time::Duration;

use ring_abi::netif::{Mac, key::MAC};
use xenstore::Nodes;

use crate::dir::Dir;
use crate::error::{Error, Result};
use crate::machine::attached::Attached;
use crate::machine::{Machine, device, progress};

/// Detach a network interface from a running guest
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The guest's name or domain ID
    domain: String,

    /// The interface: its device number or its MAC address
    #[arg(value_name = "DEVID|MAC")]
    vif: String,

    /// Remove the interface even if the guest does not close it, or dom0 is not running
    ///
    /// Fails if dom0 has not released the removed interface yet.
    #[arg(long)]
    force: bool,

    /// How long the guest may take to close the interface, in seconds
    #[arg(long, value_name = "SECONDS", default_value_t = 20)]
    timeout: u64,
}

/// Detaches the interface.
///
/// # Errors
/// There is no such interface, it is not closed in time, or dom0 is not running; with `--force`, dom0 still has the interface that
/// was removed.
pub fn run(args: &Args, dir: &Dir) -> Result<()> {
    let mut machine = Machine::connect(dir)?;
    let domain = machine.find_guest(&args.domain)?;
    let devid = args.vif.parse::<u32>().ok();
    let mac = args.vif.parse::<Mac>().ok();
    for attached in Attached::list(&mut machine.store, domain.domid, "vif")? {
        let device = &attached.device;
        let text = machine.store.read_opt(&format!("{}/{MAC}", device::libxl_path(device)))?;
        let same_mac = mac.is_some_and(|mac| text.as_deref() == Some(mac.to_string().as_bytes()));
        if devid == Some(device.id) || same_mac {
            let timeout = Duration::from_secs(args.timeout);
            return progress::detach(&mut machine, &attached, timeout, args.force);
        }
    }
    Err(Error::Other(format!("{} has no vif {}", domain.name, args.vif)))
}
