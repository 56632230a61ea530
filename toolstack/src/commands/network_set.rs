//! `xpv network-set`: changes what a guest may send by a network interface, and is sent, while it is used.

use xenstore::Nodes;

use crate::config::vif_setting::{Setting, setting};
use crate::dir::Dir;
use crate::error::{Origin, Result};
use crate::machine::listed_device::ListedDevice;
use crate::machine::listing::Listing;

/// Change what a guest may send by a network interface, and is sent
///
/// The interface stays connected. It is one of the machine in DIR, or else of the Xen host that this program runs on. The change
/// lasts until the interface is detached.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The guest's name or domain ID
    domain: String,

    /// The interface: its device number or its MAC address
    #[arg(value_name = "DEVID|MAC")]
    vif: String,

    /// What to change: rate=10Mb/s, rate-packets=1000p/s, and of what it is sent rate-in=10Mb/s, rate-in-packets=1000p/s, lock=off|mac|ip|disabled, ip='ADDRESS...', vlan=10p/20, on|off for one of isolated, learning, flood, mcast_flood, bcast_flood, hairpin, guard, locked, or frames a second (0: any) for storm_broadcast, storm_multicast, storm_unknown_unicast; nothing after the '=' gives the default
    #[arg(required = true, value_name = "KEY=VALUE")]
    settings: Vec<String>,

    /// The guest is a domain of the Xen host that this program runs on
    #[arg(long)]
    xen: bool,
}

/// Changes all of the settings, or none.
///
/// # Errors
/// A setting is unknown or its value invalid; there is no such interface.
pub fn run(args: &Args, dir: &Dir) -> Result<()> {
    let origin = Origin::argument("KEY=VALUE");
    let settings = args.settings.iter().map(|text| setting(&origin, text)).collect::<Result<Vec<_>>>()?;
    let mut listing = Listing::open(dir, args.xen)?;
    let domain = listing.find_guest(&args.domain)?;
    let device = listing.find_vif(&domain, &args.vif)?;
    write(&mut listing, &device, &settings)
}

/// Writes settings to a vif's backend, which follows them.
///
/// # Errors
/// Those of the store.
pub(super) fn write(listing: &mut Listing, device: &ListedDevice, settings: &[Setting]) -> Result<()> {
    for Setting { key, value } in settings {
        let path = format!("{}/{key}", device.backend_path);
        match value {
            Some(value) => listing.store().write(&path, value.as_bytes())?,
            None if listing.store().read_opt(&path)?.is_some() => listing.store().rm(&path)?,
            None => {}
        }
    }
    Ok(())
}
