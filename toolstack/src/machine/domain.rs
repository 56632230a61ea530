//! A domain's own nodes, as libxl's `libxl__domain_make` lays them out.

use std::time::Duration;

use xenstore::{Access, Client, DomId, Nodes, Permission};

use super::device::{self, remove_tree};
use super::progress;
use crate::dir::Dir;
use crate::error::Result;

/// Directories that a guest may only read.
const READ_ONLY: [&str; 4] = ["cpu", "memory", "device", "control"];
/// Directories that are the guest's own.
const OWN: [&str; 5] = ["data", "drivers", "feature", "attr", "error"];

/// Writes the nodes of a new domain.
///
/// # Errors
/// The store's.
pub fn add(client: &mut Client, domid: DomId, name: &str, uuid: &str) -> Result<()> {
    let home = format!("/local/domain/{domid}");
    let vm = format!("/vm/{uuid}");
    let readable = [Permission::new(DomId::DOM0, Access::None), Permission::new(domid, Access::Read)];
    let own = [Permission::new(domid, Access::None)];
    Ok(client.transaction(|tx| {
        for directory in [&home, &vm] {
            remove_tree(tx, directory)?;
            tx.mkdir(directory)?;
            tx.set_perms(directory, &readable)?;
        }
        for (key, value) in [("vm", vm.as_str()), ("name", name), ("domid", &domid.to_string())] {
            let path = format!("{home}/{key}");
            tx.write(&path, value)?;
            tx.set_perms(&path, &readable)?;
        }
        for (key, value) in [("uuid", uuid), ("name", name)] {
            tx.write(&format!("{vm}/{key}"), value)?;
        }
        for directory in READ_ONLY {
            tx.mkdir(&format!("{home}/{directory}"))?;
            tx.set_perms(&format!("{home}/{directory}"), &readable)?;
        }
        for directory in OWN {
            tx.mkdir(&format!("{home}/{directory}"))?;
            tx.set_perms(&format!("{home}/{directory}"), &own)?;
        }
        remove_tree(tx, &format!("/libxl/{domid}"))?;
        tx.write(&format!("/libxl/{domid}/type"), "pv")
    })?)
}

/// Writes dom0's nodes, once for a store.
///
/// # Errors
/// The store's.
pub fn add_dom0(client: &mut Client) -> Result<()> {
    for (key, value) in [("name", "Domain-0"), ("domid", "0")] {
        client.write(&format!("/local/domain/0/{key}"), value)?;
    }
    // Those that hold others' nodes: they stay when a guest goes.
    for directory in ["/local/domain/0/backend", "/local/domain/0/error", "/libxl", "/vm"] {
        client.mkdir(directory)?;
    }
    Ok(())
}

/// How long a backend may take to let go of a dead guest's device; it finishes what is in flight first.
const LET_GO: Duration = Duration::from_secs(5);

/// Removes everything of a domain: its devices at both ends, its own nodes, what libxl knows of it. Where dom0
/// serves, it has let go of the devices then: their images are free.
///
/// # Errors
/// The store's.
pub fn remove(client: &mut Client, domid: DomId, dom0_serves: bool) -> Result<()> {
    for kind in ["vbd", "vif"] {
        for device in device::list(client, domid, kind)? {
            // A frontend that is not there is as good as one that has closed.
            device::remove_tree(client, &device.front_path())?;
            if dom0_serves {
                progress::close(client, &device, LET_GO)?;
            }
            device::remove(client, &device)?;
        }
    }
    Ok(client.transaction(|tx| {
        let home = format!("/local/domain/{domid}");
        if let Some(vm) = tx.read_opt(&format!("{home}/vm"))?
            && vm.starts_with(b"/vm/")
        {
            remove_tree(tx, &String::from_utf8_lossy(&vm))?;
        }
        for path in [home, format!("/libxl/{domid}")] {
            remove_tree(tx, &path)?;
        }
        Ok(())
    })?)
}

/// Removes the sockets that a dead guest left; its log stays, for whoever wonders why.
pub fn remove_sockets(dir: &Dir, name: &str) {
    let Ok(entries) = std::fs::read_dir(dir.guest(name)) else { return };
    for path in entries.flatten().map(|entry| entry.path()) {
        if path.extension().is_some_and(|e| e == "nbd") {
            let _ = std::fs::remove_file(path);
        }
    }
}
