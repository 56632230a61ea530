//! `xpv network-list`: lists the network interfaces of guests.

use std::collections::BTreeMap;

use bridge::{Flags, StormLimits};
use ring_abi::netif::key;
use serde::Serialize;
use serde_json::Value;
use xenstore::{Client, Nodes};

use crate::config::vif::is_interface_name;
use crate::control::client::{self, Served};
use crate::dir::Dir;
use crate::error::Result;
use crate::guest::tap::TAP;
use crate::machine::listed_device::ListedDevice;
use crate::machine::listing::{ListedDomain, Listing};
use crate::output;

/// List the network interfaces of guests
///
/// It lists guests of the machine in DIR. If none was started there and this is a domain of a Xen host, it lists domains of
/// that host, beside xl. With --json it shows what `xpv dom0` has counted for each interface, if it runs: see
/// docs/control.md.
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
    /// The guest's domain.
    domid: u16,
    devid: u32,
    backend_domid: u16,
    mac: String,
    bridge: String,
    /// The name in the vif's configuration, and of the bridge's port.
    vifname: String,
    /// The name of its tap, which differs from `vifname` in a network namespace of the guest, or if that was taken.
    tap: Option<String>,
    /// The frontend's `XenbusState` as a number.
    state: u8,
    backend_path: String,
    /// What the guest may send and is sent, as the store has it: an amount and the microseconds in which, by the keys' names.
    rates: BTreeMap<&'static str, String>,
    /// From which addresses the guest may send; `None` is the default of what it is attached to.
    lock: Option<String>,
    /// The addresses of `lock=ip`.
    ip: Option<String>,
    /// The VLANs that the guest is in; `None`: it has no tags.
    vlan: Option<String>,
    /// The flags of the guest's port that were given: whether they are on.
    flags: BTreeMap<&'static str, bool>,
    /// The storm limits that were given, in frames a second; null does not limit.
    storm: BTreeMap<&'static str, Option<u32>>,
    /// Why dom0 does not serve it, or closed its last connection.
    error: Option<String>,
    /// What dom0 has counted; `None` if no process of xpv serves the interface.
    stats: Option<Value>,
}

/// Lists the interfaces.
///
/// # Errors
/// There is no guest of one of the names: nothing is listed then.
pub fn run(args: &Args, dir: &Dir) -> Result<()> {
    let mut listing = Listing::open(dir, args.xen)?;
    let mut rows = Vec::new();
    for name in &args.domains {
        let domain = listing.find_guest(name)?;
        let served = if args.json { client::devices(dir, domain.domid.0) } else { Served::default() };
        for device in listing.devices(domain.domid, "vif")? {
            rows.push(row(listing.store(), &domain, &device, &served)?);
        }
    }
    if args.json {
        return output::json(&rows);
    }
    let rows: Vec<_> = rows.into_iter().map(columns).collect();
    let headings = [
        ("Idx", 3),
        ("BE", 2),
        ("Mac Addr.", 17),
        ("handle", 6),
        ("state", 5),
        ("Bridge", 12),
        ("Tap", 15),
        ("BE-path", 0),
    ];
    output::table(headings, &rows)
}

fn columns(row: Row) -> [String; 8] {
    let Row { devid, backend_domid, mac, bridge, tap, state, backend_path, .. } = row;
    let tap = tap.unwrap_or_else(|| "-".to_owned());
    let devid = devid.to_string();
    [devid.clone(), backend_domid.to_string(), mac, devid, state.to_string(), bridge, tap, backend_path]
}

fn row(store: &mut Client, domain: &ListedDomain, device: &ListedDevice, served: &Served) -> Result<Row> {
    let vifname = device.key(store, key::VIFNAME)?.filter(|name| !name.is_empty());
    let known = device.served(served).cloned();
    Ok(Row {
        domid: domain.domid.0,
        devid: device.id,
        backend_domid: device.backend_domid.0,
        mac: device.key(store, key::MAC)?.unwrap_or_default(),
        bridge: device.key(store, key::BRIDGE)?.unwrap_or_default(),
        vifname: vifname.unwrap_or_else(|| netback::default_vif_name(domain.domid, device.id)),
        tap: tap(store, device)?,
        state: device.frontend_state(store)?,
        rates: rates(store, device)?,
        lock: own_key(store, device, key::LOCK)?,
        ip: own_key(store, device, key::IP)?,
        vlan: own_key(store, device, key::VLAN)?,
        flags: flags(store, device)?,
        storm: storm(store, device)?,
        backend_path: device.backend_path.clone(),
        error: known.as_ref().and_then(|known| known.error.clone()),
        stats: known.and_then(|known| known.stats),
    })
}

/// Reads a key of the backend's own directory, which `xpv network-set` writes.
fn own_key(store: &mut Client, device: &ListedDevice, key: &str) -> Result<Option<String>> {
    match store.read_text(&format!("{}/{key}", device.backend_path)) {
        Err(e) if e.is_not_found() => Ok(None),
        value => Ok(Some(value?)),
    }
}

fn rates(store: &mut Client, device: &ListedDevice) -> Result<BTreeMap<&'static str, String>> {
    let mut rates = BTreeMap::new();
    for name in [key::RATE, key::RATE_PACKETS, key::RATE_IN, key::RATE_IN_PACKETS] {
        if let Some(rate) = own_key(store, device, name)? {
            rates.insert(name, rate);
        }
    }
    Ok(rates)
}

fn flags(store: &mut Client, device: &ListedDevice) -> Result<BTreeMap<&'static str, bool>> {
    let mut flags = BTreeMap::new();
    for name in Flags::NAMES {
        if let Some(on) = own_key(store, device, name)?.as_deref().and_then(Flags::parse) {
            flags.insert(name, on);
        }
    }
    Ok(flags)
}

fn storm(store: &mut Client, device: &ListedDevice) -> Result<BTreeMap<&'static str, Option<u32>>> {
    let mut limits = BTreeMap::new();
    for name in StormLimits::NAMES {
        if let Some(limit) = own_key(store, device, name)?.as_deref().and_then(StormLimits::parse) {
            limits.insert(name, limit);
        }
    }
    Ok(limits)
}

/// Reads the name of the vif's tap, which the guest's process wrote. A guest may write anything there: it is shown only
/// if it is a valid interface name.
fn tap(store: &mut Client, device: &ListedDevice) -> Result<Option<String>> {
    let name = match store.read_text(&format!("{}/{TAP}", device.frontend_path)) {
        Err(e) if e.is_not_found() => return Ok(None),
        name => name?,
    };
    Ok(Some(name).filter(|name| is_interface_name(name) && !name.contains(char::is_control)))
}
