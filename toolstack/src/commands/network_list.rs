//! `xpv network-list`: a guest's interfaces.

use serde::Serialize;
use xenstore::Nodes;

use crate::dir::Dir;
use crate::error::Result;
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
    vifname: String,
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
            state: states.front.unwrap_or_default() as u8,
            backend_path: device.back_path(),
        });
    }
    if args.json {
        return output::json(&rows);
    }
    println!(
        "{:<3} {:<2} {:<17} {:<6} {:<5} {:<12} BE-path",
        "Idx", "BE", "Mac Addr.", "handle", "state", "Bridge"
    );
    for Row { devid, backend_domid, mac, bridge, state, backend_path, .. } in rows {
        println!("{devid:<3} {backend_domid:<2} {mac:<17} {devid:<6} {state:<5} {bridge:<12} {backend_path}");
    }
    Ok(())
}
