//! `xpv network-detach`: one interface less for a guest that runs.

use std::time::Duration;

use ring_abi::netif::Mac;
use xenstore::Nodes;

use crate::dir::Dir;
use crate::error::{Error, Result};
use crate::machine::{Machine, device, progress};

/// Detach a network interface from a running guest
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The guest's name or number
    domain: String,

    /// The interface: its number in the guest, or its address
    #[arg(value_name = "DEVID|MAC")]
    vif: String,

    /// Remove it even if the guest does not let go
    #[arg(long)]
    force: bool,

    /// How long the guest may take to let go, in seconds
    #[arg(long, value_name = "SECONDS", default_value_t = 20)]
    timeout: u64,
}

/// Detaches it.
///
/// # Errors
/// There is no such interface, or the guest does not let go.
pub fn run(args: &Args, dir: &Dir) -> Result<()> {
    let mut machine = Machine::connect(dir)?;
    let domain = machine.find_guest(&args.domain)?;
    let (devid, mac) = (args.vif.parse::<u32>().ok(), args.vif.parse::<Mac>().ok());
    for device in device::list(&mut machine.store, domain.domid, "vif")? {
        let its = machine.store.read_opt(&format!("{}/mac", device::libxl_path(&device)))?;
        let same_mac = mac.is_some_and(|mac| its.as_deref() == Some(mac.to_string().as_bytes()));
        if devid == Some(device.id) || same_mac {
            let bound = Duration::from_secs(args.timeout);
            return progress::detach(&mut machine.store, &device, bound, args.force);
        }
    }
    Err(Error::Other(format!("{} has no vif {}", domain.name, args.vif)))
}
