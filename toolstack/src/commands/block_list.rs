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
    let rows: Vec<_> = rows.into_iter().map(columns).collect();
    let headings =
        [("Vdev", 6), ("Name", 6), ("BE", 3), ("handle", 6), ("state", 5), ("BE-path", 40), ("NBD", 0)];
    output::table(headings, &rows)
}

fn columns(row: Row) -> [String; 7] {
    let nbd = row.nbd.map_or_else(|| "-".to_owned(), |nbd| nbd.display().to_string());
    let Row { vdev, dev, backend_domid, domid, state, backend_path, .. } = row;
    let numbers = [backend_domid.into(), domid.into(), u32::from(state)].map(|number| number.to_string());
    let [backend_domid, domid, state] = numbers;
    [vdev.to_string(), dev, backend_domid, domid, state, backend_path, nbd]
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
