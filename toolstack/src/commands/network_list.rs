//! `xpv network-list`: a guest's interfaces.

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
    /// The guest's name or number
    domain: String,

    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// An interface as it is shown.
#[derive(Debug, Serialize)]
struct Row {
    devid: u32,
    backend_domid: u16,
    mac: String,
    bridge: String,
    /// As the vif's line names it, and its port of the bridge.
    vifname: String,
    /// The name that its tap has in fact: another one in a namespace of the guest's own, or where the first was
    /// taken.
    tap: Option<String>,
    /// The frontend's state, by its number.
    state: u8,
    backend_path: String,
}

/// Lists them.
///
/// # Errors
/// There is no such guest.
pub fn run(args: &Args, dir: &Dir) -> Result<()> {
    let mut machine = Machine::connect(dir)?;
    let domain = machine.find_guest(&args.domain)?;
    let mut rows = Vec::new();
    for device in device::list(&mut machine.store, domain.domid, "vif")? {
        let states = progress::states(&mut machine.store, &device)?;
        let told = device::libxl_path(&device);
        let mut text = |key: &str| machine.store.read_text(&format!("{told}/{key}"));
        rows.push(Row {
            devid: device.id,
            backend_domid: device.back.0,
            mac: text("mac")?,
            bridge: text("bridge")?,
            vifname: text("vifname")?,
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

/// What the guest's process calls the vif's tap. The guest may write anything there: only an interface's name is
/// shown.
fn tap(store: &mut Client, device: &Device) -> Result<Option<String>> {
    let told = match store.read_text(&format!("{}/{TAP}", device.front_path())) {
        Err(e) if e.is_not_found() => return Ok(None),
        told => told?,
    };
    Ok(Some(told).filter(|name| is_interface_name(name) && !name.contains(char::is_control)))
}
