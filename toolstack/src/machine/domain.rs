//! A domain's nodes, as libxl's `libxl__domain_make` lays them out.

use std::time::Duration;

use xenstore::{Access, Client, DomId, Nodes, Permission};

use super::device::{self, remove_tree};
use super::progress;
use crate::dir::Dir;
use crate::error::Result;

/// Directories that the guest may only read.
const READ_ONLY: [&str; 4] = ["cpu", "memory", "device", "control"];
/// Directories that the guest owns.
const OWN: [&str; 5] = ["data", "drivers", "feature", "attr", "error"];

/// Writes the nodes of a new domain in one transaction.
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

/// Writes dom0's nodes into a new store.
pub fn add_dom0(client: &mut Client) -> Result<()> {
    for (key, value) in [("name", "Domain-0"), ("domid", "0")] {
        client.write(&format!("/local/domain/0/{key}"), value)?;
    }
    // Parents of guests' nodes: they remain when a guest's nodes are removed.
    for directory in ["/local/domain/0/backend", "/local/domain/0/error", "/libxl", "/vm"] {
        client.mkdir(directory)?;
    }
    Ok(())
}

/// How long a backend may take to close a device of a dead guest; it completes requests in flight first.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(5);

/// Removes a domain's nodes: its devices' frontends and backends, its home, and its nodes in `/libxl`. If dom0 is
/// running, its backends have closed the devices, and with them their images, when this returns.
pub fn remove(client: &mut Client, domid: DomId, dom0_runs: bool) -> Result<()> {
    for kind in ["vbd", "vif"] {
        for device in device::list(client, domid, kind)? {
            // Backends treat a frontend without nodes as closed.
            device::remove_tree(client, &device.front_path())?;
            if dom0_runs {
                progress::close(client, &device, CLOSE_TIMEOUT)?;
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

/// Removes the sockets of a dead guest; its log is kept for diagnosis.
pub fn remove_sockets(dir: &Dir, name: &str) {
    let Ok(entries) = std::fs::read_dir(dir.guest(name)) else { return };
    for path in entries.flatten().map(|entry| entry.path()) {
        if path.extension().is_some_and(|e| e == "nbd") {
            let _ = std::fs::remove_file(path);
        }
    }
}
