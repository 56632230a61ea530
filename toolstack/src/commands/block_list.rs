//! `xpv block-list`: lists a guest's disks.

use ring_abi::blkif::key;
use serde::Serialize;
use xenstore::Nodes;

use crate::dir::Dir;
use crate::error::Result;
use crate::machine::{Machine, device, progress};
use crate::output;

/// List a guest's disks
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
    vdev: u32,
    dev: String,
    backend_domid: u16,
    domid: u16,
    /// The frontend's `XenbusState` as a number.
    state: u8,
    params: String,
    mode: String,
    sectors: Option<u64>,
    backend_path: String,
    /// The disk's NBD socket.
    nbd: std::path::PathBuf,
}

/// Lists the disks.
///
/// # Errors
/// There is no such guest.
pub fn run(args: &Args, dir: &Dir) -> Result<()> {
    let mut machine = Machine::connect(dir)?;
    let domain = machine.find_guest(&args.domain)?;
    let mut rows = Vec::new();
    for device in device::list(&mut machine.store, domain.domid, "vbd")? {
        let states = progress::states(&mut machine.store, &device)?;
        let libxl = device::libxl_path(&device);
        let store = &mut machine.store;
        let dev = store.read_text(&format!("{libxl}/{}", key::DEV))?;
        rows.push(Row {
            vdev: device.id,
            nbd: dir.nbd(&domain.name, &dev),
            dev,
            backend_domid: device.back.0,
            domid: device.front.0,
            state: states.front.unwrap_or_default() as u8,
            params: store.read_text(&format!("{libxl}/{}", key::PARAMS))?,
            mode: store.read_text(&format!("{libxl}/{}", key::MODE))?,
            sectors: store.read_opt_as(&format!("{}/{}", device.back_path(), key::SECTORS))?,
            backend_path: device.back_path(),
        });
    }
    if args.json {
        return output::json(&rows);
    }
    println!("{:<6} {:<6} {:<3} {:<6} {:<5} {:<40} NBD", "Vdev", "Name", "BE", "handle", "state", "BE-path");
    for Row { vdev, dev, backend_domid, domid, state, backend_path, nbd, .. } in rows {
        let nbd = nbd.display();
        println!("{vdev:<6} {dev:<6} {backend_domid:<3} {domid:<6} {state:<5} {backend_path:<40} {nbd}");
    }
    Ok(())
}
