//! A domain's nodes, as libxl's `libxl__domain_make` lays them out.

use std::time::{Duration, Instant};

use xenstore::{Access, Client, DomId, Nodes, Permission};

use super::attached::Attached;
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

/// How long a backend may take to close a device of a guest that is removed; it completes requests in flight first.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(5);

/// As [`CLOSE_TIMEOUT`], for who removes guests whose process exited. Longer, as a command that removes the same guest sees what
/// its backends have not released only while their nodes exist.
pub const REAP_TIMEOUT: Duration = Duration::from_secs(8);

/// How often [`remove`] looks whether the backends have closed.
pub const POLL_INTERVAL: Duration = Duration::from_millis(10);

/// Removes a domain's nodes: its devices' frontends and backends, its home, and its nodes in `/libxl`. If dom0 is
/// running, its backends have closed the devices, and with them their images, when this returns, except for those that
/// are returned.
pub fn remove(client: &mut Client, domid: DomId, dom0_runs: bool) -> Result<Vec<Attached>> {
    let removal = Removal::start(client, domid, dom0_runs.then_some(CLOSE_TIMEOUT))?;
    let unreleased: Vec<Attached> = loop {
        if let Some(left) = removal.due(client)? {
            break left.into_iter().cloned().collect();
        }
        std::thread::park_timeout(POLL_INTERVAL);
    };
    removal.finish(client)?;
    Ok(if dom0_runs { unreleased } else { Vec::new() })
}

/// A domain that is being removed. Its backends close all its devices, and those of other domains, at the same time.
#[derive(Debug)]
pub struct Removal {
    domid: DomId,
    devices: Vec<Attached>,
    /// When its nodes are removed in any case.
    deadline: Instant,
}

impl Removal {
    /// Removes the frontends' nodes, and if dom0 runs requests that its backends close, which may take so long.
    pub fn start(client: &mut Client, domid: DomId, timeout: Option<Duration>) -> Result<Removal> {
        let mut devices = Vec::new();
        for kind in ["vbd", "vif"] {
            devices.extend(Attached::list(client, domid, kind)?);
        }
        for attached in &devices {
            // Backends treat a frontend without nodes as closed.
            attached.remove_front(client)?;
            if timeout.is_some() {
                attached.request_close(client)?;
            }
        }
        Ok(Removal { domid, devices, deadline: Instant::now() + timeout.unwrap_or_default() })
    }

    /// The domain.
    pub fn domid(&self) -> DomId {
        self.domid
    }

    /// Whether all backends have closed, or had time to.
    pub fn is_due(&self, client: &mut Client) -> Result<bool> {
        Ok(self.due(client)?.is_some())
    }

    /// The devices whose backends have not closed, once all have or had time to; `None` before.
    fn due(&self, client: &mut Client) -> Result<Option<Vec<&Attached>>> {
        let left = self.not_closed(client)?;
        Ok((left.is_empty() || Instant::now() >= self.deadline).then_some(left))
    }

    /// The devices whose backends have not closed.
    fn not_closed(&self, client: &mut Client) -> Result<Vec<&Attached>> {
        let mut left = Vec::new();
        for attached in &self.devices {
            if !progress::states(client, &attached.device)?.are_closed() {
                left.push(attached);
            }
        }
        Ok(left)
    }

    /// Removes the domain's nodes.
    pub fn finish(self, client: &mut Client) -> Result<()> {
        let domid = self.domid;
        Ok(client.transaction(|tx| {
            // Also those that were attached since the removal began.
            for kind in ["vbd", "vif"] {
                for device in device::list(tx, domid, kind)? {
                    device::remove_nodes(tx, &device)?;
                }
            }
            let home = format!("/local/domain/{domid}");
            if let Some(vm) = tx.read_opt(&format!("{home}/vm"))?
                && vm.starts_with(b"/vm/")
            {
                remove_tree(tx, &String::from_utf8_lossy(&vm))?;
            }
            for kind in ["vbd", "vif"] {
                remove_tree(tx, &format!("/local/domain/0/error/backend/{kind}/{domid}"))?;
            }
            for path in [home, format!("/libxl/{domid}")] {
                remove_tree(tx, &path)?;
            }
            Ok(())
        })?)
    }
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::machine::attached;
    use crate::machine::device::NewDevice;
    use ring_abi::xenbus::key::STATE;
    use xenbus::{Device, XenbusState};
    use xenstore::server::{Config, Store};

    /// A store with dom0 and a domain 1 that has one device.
    fn store_with_device(kind: &str) -> (Store, Client, Attached) {
        let store = Store::spawn(Config::default()).unwrap();
        let mut client = store.client().unwrap();
        add_dom0(&mut client).unwrap();
        add(&mut client, DomId(1), "1", "1").unwrap();
        let attached = attached::add(&mut client, &NewDevice::new(Device::new(kind, DomId(1), 0))).unwrap();
        (store, client, attached)
    }

    fn close(client: &mut Client, Attached { device, .. }: &Attached) {
        client.write(&format!("{}/{STATE}", device.back_path()), XenbusState::Closed.as_text()).unwrap();
    }

    #[test]
    fn device_that_has_closed_for_one_remover_stays_closed_for_another() {
        let (_store, mut client, attached) = store_with_device("vif");
        let first = Removal::start(&mut client, DomId(1), Some(CLOSE_TIMEOUT)).unwrap();
        close(&mut client, &attached);
        let second = Removal::start(&mut client, DomId(1), Some(CLOSE_TIMEOUT)).unwrap();
        assert!(first.is_due(&mut client).unwrap() && second.is_due(&mut client).unwrap());
    }

    /// A backend that sees its frontend gone closes, and has the image as long as the device is wanted.
    #[test]
    fn device_that_has_closed_while_it_was_wanted_is_to_close_again() {
        let (_store, mut client, attached) = store_with_device("vbd");
        attached.remove_front(&mut client).unwrap();
        close(&mut client, &attached);
        let removal = Removal::start(&mut client, DomId(1), Some(CLOSE_TIMEOUT)).unwrap();
        assert!(!removal.is_due(&mut client).unwrap());
        close(&mut client, &attached);
        assert!(removal.is_due(&mut client).unwrap());
    }

    #[test]
    fn domain_whose_backends_have_closed_is_removed_while_others_are_waited_for() {
        let store = Store::spawn(Config::default()).unwrap();
        let mut client = store.client().unwrap();
        add_dom0(&mut client).unwrap();
        let mut start = |domid: DomId| {
            add(&mut client, domid, &domid.to_string(), &domid.to_string()).unwrap();
            for kind in ["vbd", "vif"] {
                attached::add(&mut client, &NewDevice::new(Device::new(kind, domid, 0))).unwrap();
            }
            Removal::start(&mut client, domid, Some(CLOSE_TIMEOUT)).unwrap()
        };
        let stuck = start(DomId(1));
        let all: Vec<_> = stuck.devices.iter().collect();
        let other = start(DomId(2));
        for attached in &other.devices {
            assert!(!other.is_due(&mut client).unwrap());
            close(&mut client, attached);
        }
        assert!(other.is_due(&mut client).unwrap() && !stuck.is_due(&mut client).unwrap());
        assert_eq!(stuck.not_closed(&mut client).unwrap(), all);
        client.write("/local/domain/0/error/backend/vbd/2/0/error", "5 late").unwrap();
        attached::add(&mut client, &NewDevice::new(Device::new("vbd", DomId(2), 16))).unwrap();
        other.finish(&mut client).unwrap();
        assert!(!client.exists("/local/domain/0/backend/vbd/2").unwrap(), "attached late");
        for path in ["/local/domain/2", "/libxl/2", "/local/domain/0/error/backend/vbd/2"] {
            assert!(!client.exists(path).unwrap(), "{path}");
        }
        assert!(client.exists("/libxl/1").unwrap());
    }
}
