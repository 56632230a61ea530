//! `xpv network-list`: lists a guest's network interfaces.

use ring_abi::netif::key;
use serde::Serialize;
use xenstore::xenbus::Device;
use xenstore::{Client, Nodes};

use crate::config::vif::is_interface_name;
use crate::dir::Dir;
use crate::error::Result;
use crate::guest::tap::TAP;
use crate::machine::{Machine, device, progress};
use crate::output;

/// List a guest's network interfaces
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The guest's name or domain ID
    domain: String,

    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// A line of the listing.
#[derive(Debug, Serialize)]
struct Row {
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
}

/// Lists the interfaces.
///
/// # Errors
/// There is no such guest.
pub fn run(args: &Args, dir: &Dir) -> Result<()> {
    let mut machine = Machine::connect(dir)?;
    let domain = machine.find_guest(&args.domain)?;
    let mut rows = Vec::new();
    for device in device::list(&mut machine.store, domain.domid, "vif")? {
        let states = progress::states(&mut machine.store, &device)?;
        let libxl = device::libxl_path(&device);
        let mut text = |key: &str| machine.store.read_text(&format!("{libxl}/{key}"));
        rows.push(Row {
            devid: device.id,
            backend_domid: device.back.0,
            mac: text(key::MAC)?,
            bridge: text(key::BRIDGE)?,
            vifname: text(key::VIFNAME)?,
            tap: tap(&mut machine.store, &device)?,
            state: states.front.unwrap_or_default() as u8,
            backend_path: device.back_path(),
        });
    }
    if args.json {
        return output::json(&rows);
    }
    println!(
        "{:<3} {:<2} {:<17} {:<6} {:<5} {:<12} {:<15} BE-path",
        "Idx", "BE", "Mac Addr.", "handle", "state", "Bridge", "Tap"
    );
    for Row { devid, backend_domid, mac, bridge, tap, state, backend_path, .. } in rows {
        let tap = tap.as_deref().unwrap_or("-");
        println!(
            "{devid:<3} {backend_domid:<2} {mac:<17} {devid:<6} {state:<5} {bridge:<12} {tap:<15} {backend_path}"
        );
    }
    Ok(())
}

/// Reads the name of the vif's tap, which the guest's process wrote. A guest may write anything there: it is shown only
/// if it is a valid interface name.
fn tap(store: &mut Client, device: &Device) -> Result<Option<String>> {
    let name = match store.read_text(&format!("{}/{TAP}", device.front_path())) {
        Err(e) if e.is_not_found() => return Ok(None),
        name => name?,
    };
    Ok(Some(name).filter(|name| is_interface_name(name) && !name.contains(char::is_control)))
}
