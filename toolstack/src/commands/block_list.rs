//! `xpv block-list`: lists the disks of guests.

use ring_abi::blkif::key;
use ring_abi::blkif::vdev::Vdev;
use serde::Serialize;
use serde_json::{Map, Value};
use std::path::PathBuf;
use xenstore::Nodes;

use crate::control::client::{self, Served};
use crate::dir::Dir;
use crate::error::Result;
use crate::machine::listed_device::ListedDevice;
use crate::machine::listing::{ListedDomain, Listing};
use crate::output;

/// List the disks of guests
///
/// It lists guests of the machine in DIR. If none was started there and this is a domain of a Xen host, it lists domains of
/// that host, beside xl. With --json it shows what `xpv dom0` has counted for each disk, if it runs: see docs/control.md.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The guests' names or domain IDs
    #[arg(required = true, value_name = "DOMAIN")]
    domains: Vec<String>,

    /// Print JSON, with the counters of `xpv dom0`
    #[arg(long)]
    json: bool,

    /// List domains of the Xen host that this program runs on
    #[arg(long)]
    xen: bool,
}

/// A line of the listing.
#[derive(Debug, Serialize)]
struct Row {
    vdev: u32,
    dev: String,
    backend_domid: u16,
    domid: u16,
    /// The frontend's `XenbusState` as a number.
    state: u8,
    params: Option<String>,
    mode: Option<String>,
    sectors: Option<u64>,
    backend_path: String,
    /// The disk's NBD socket; `None` on a Xen host.
    nbd: Option<PathBuf>,
    /// Why dom0 does not serve it, or closed its last connection.
    error: Option<String>,
    /// The limits in force, by the names of their keys; `None` if no process of xpv serves the disk.
    limits: Option<Map<String, Value>>,
    /// What dom0 has counted; `None` if no process of xpv serves the disk.
    stats: Option<Value>,
}

/// Lists the disks.
///
/// # Errors
/// There is no guest of one of the names: nothing is listed then.
pub fn run(args: &Args, dir: &Dir) -> Result<()> {
    let mut listing = Listing::open(dir, args.xen)?;
    let mut rows = Vec::new();
    for name in &args.domains {
        let domain = listing.find_guest(name)?;
        let served = if args.json { client::devices(dir, domain.domid.0) } else { Served::default() };
        for device in listing.devices(domain.domid, "vbd")? {
            rows.push(row(&mut listing, dir, &domain, &device, &served)?);
        }
    }
    if args.json {
        return output::json(&rows);
    }
    output::line(format_args!(
        "{:<6} {:<6} {:<3} {:<6} {:<5} {:<40} NBD",
        "Vdev", "Name", "BE", "handle", "state", "BE-path"
    ))?;
    for Row { vdev, dev, backend_domid, domid, state, backend_path, nbd, .. } in rows {
        let nbd = nbd.unwrap_or_else(|| "-".into());
        let nbd = nbd.display();
        output::line(format_args!(
            "{vdev:<6} {dev:<6} {backend_domid:<3} {domid:<6} {state:<5} {backend_path:<40} {nbd}"
        ))?;
    }
    Ok(())
}

fn row(
    listing: &mut Listing,
    dir: &Dir,
    domain: &ListedDomain,
    device: &ListedDevice,
    served: &Served,
) -> Result<Row> {
    let is_local = matches!(listing, Listing::Local(_));
    let store = listing.store();
    let dev = device.key(store, key::DEV)?.unwrap_or_else(|| Vdev::from_number(device.id).to_string());
    let known = device.served(served).cloned();
    Ok(Row {
        vdev: device.id,
        nbd: is_local.then(|| dir.nbd(&domain.name, &dev)),
        dev,
        backend_domid: device.backend_domid.0,
        domid: domain.domid.0,
        state: device.frontend_state(store)?,
        params: device.key(store, key::PARAMS)?,
        mode: device.key(store, key::MODE)?,
        sectors: store.read_opt_as(&format!("{}/{}", device.backend_path, key::SECTORS))?,
        backend_path: device.backend_path.clone(),
        error: known.as_ref().and_then(|known| known.error.clone()),
        limits: known.as_ref().and_then(|known| known.limits.clone()),
        stats: known.and_then(|known| known.stats),
    })
}
