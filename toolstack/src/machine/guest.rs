//! A guest's life: created whole or not at all, and destroyed without a trace.

use std::fs::File;
use std::path::Path;
use std::time::Duration;

use hypervisor::DomId;
use hypervisor::local::DomainInfo;
use nix::fcntl::{Flock, FlockArg};
use nix::unistd::Uid;
use ring_abi::netif::Mac;
use xenstore::Nodes;
use xenstore::xenbus::Device;

use super::device::{self, NewDevice};
use super::process::{self, Fate, Owned};
use super::{Machine, domain, progress, vbd, vif};
use crate::config::GuestConfig;
use crate::dir::{self, Dir};
use crate::error::{Error, Origin, Result};

/// How a guest is to be created.
pub struct How<'a> {
    /// Where its configuration came from, for errors.
    pub origin: &'a Origin,
    /// Starts its process; the domain is there, with all its nodes.
    pub start: &'a dyn Fn(&Machine) -> Result<Owned>,
    /// How long its devices may take to connect.
    pub bound: Duration,
}

/// Starts `xpv guest` for a guest; it writes into the guest's log unless it is ours.
///
/// # Errors
/// The system's.
pub fn start(machine: &Machine, name: &str, netns: Option<&str>, ours: bool) -> Result<Owned> {
    let log = (!ours).then(|| machine.dir.log(name));
    let mut command = process::command(&machine.dir, &Fate { ours, log })?;
    command.arg("guest").arg(name);
    if let Some(netns) = netns {
        command.arg("--netns").arg(netns);
    }
    process::spawn(command)
}

/// Creates a guest and waits until all its devices are connected. `go_on` is asked meanwhile.
///
/// # Errors
/// Why it could not be; nothing is left of it then.
pub fn create(
    machine: &mut Machine,
    config: &GuestConfig,
    how: &How<'_>,
    go_on: impl FnMut() -> Result<()>,
) -> Result<(DomId, Owned)> {
    for disk in &config.disks {
        vbd::check_target(how.origin, disk)?;
    }
    machine.need_dom0()?;
    for vif in &config.vifs {
        check_bridge(machine, how.origin, &vif.bridge)?;
    }
    let domid = claim(machine, &config.name)?;
    match build(machine, config, how, domid, go_on) {
        Ok(process) => Ok((domid, process)),
        Err(reason) => {
            // The reason matters more than what goes wrong while cleaning up.
            if let Err(e) = remove(machine, domid, &config.name) {
                eprintln!("xpv: while removing what was created of {}: {e}", config.name);
            }
            Err(reason)
        }
    }
}

/// Sees that dom0 has a bridge.
///
/// # Errors
/// It has not: says which it has.
pub fn check_bridge(machine: &mut Machine, origin: &Origin, bridge: &str) -> Result<()> {
    let bridges = machine.bridges()?;
    if bridges.iter().any(|name| name == bridge) {
        return Ok(());
    }
    let expected = match bridges.is_empty() {
        true => "no vif at all, as dom0 has no bridge".to_owned(),
        false => format!("a bridge of dom0: {}", bridges.join(", ")),
    };
    Err(origin.wrong("vif: bridge", bridge, expected))
}

/// A new domain of this name, its own nodes written.
///
/// One creator at a time, so that a domain without a process is either being created by a process that lives, or
/// the rest of one that died; the latter's name is free.
fn claim(machine: &mut Machine, name: &str) -> Result<DomId> {
    let _one_at_a_time = lock(&machine.dir)?;
    if let Some(other) = machine.domains()?.into_iter().find(|d| d.name == name) {
        if is_alive(machine, &other)? {
            return Err(Error::Other(format!("the name {name:?} is taken by domain {}", other.domid)));
        }
        remove(machine, other.domid, name)?;
    }
    let domid = machine.control.create(name, Uid::effective().as_raw(), None)?;
    let uuid = uuid(rand::random());
    let written = domain::add(&mut machine.store, domid, name, &uuid)
        .and_then(|()| Ok(machine.store.write(&creator_path(domid), std::process::id().to_string())?));
    if written.is_err() {
        machine.control.destroy(domid)?;
    }
    written.map(|()| domid)
}

/// Nobody else takes or gives up a guest's name while this lives.
///
/// # Errors
/// The system's.
pub fn lock(dir: &Dir) -> Result<Flock<File>> {
    let path = dir.path().join("create.lock");
    let file = File::options().create(true).truncate(false).write(true).open(&path);
    let file = file.map_err(|e| Error::file(&path, "opening the lock", e))?;
    Flock::lock(file, FlockArg::LockExclusive).map_err(|(_, e)| Error::file(&path, "locking", e))
}

fn creator_path(domid: DomId) -> String {
    format!("/libxl/{domid}/creator")
}

/// How long a process that was killed a moment ago may take to be gone.
const LAST_BREATH: Duration = Duration::from_millis(200);

/// Whether the domain's process, or the process that is creating it, runs and is not about to end.
fn is_alive(machine: &mut Machine, domain: &DomainInfo) -> Result<bool> {
    let creator = machine.store.read_opt_as::<u32>(&creator_path(domain.domid))?;
    Ok([domain.pid, creator]
        .into_iter()
        .flatten()
        .any(|pid| !process::is_ending(pid) && !process::ends_within(pid, LAST_BREATH)))
}

/// Devices' nodes, the process, and the wait.
fn build(
    machine: &mut Machine,
    config: &GuestConfig,
    how: &How<'_>,
    domid: DomId,
    mut go_on: impl FnMut() -> Result<()>,
) -> Result<Owned> {
    let devices = devices(domid, config);
    for new in &devices {
        device::add(&mut machine.store, new)?;
    }
    dir::make(&machine.dir.guest(&config.name))?;
    let mut process = (how.start)(machine)?;
    let devices: Vec<Device> = devices.into_iter().map(|new| new.device).collect();
    let log = machine.dir.log(&config.name);
    progress::wait_connected(&mut machine.store, &devices, how.bound, || match process.ended()? {
        Some(status) => Err(died(&config.name, &status, &log)),
        None => go_on(),
    })?;
    machine.store.rm(&creator_path(domid))?;
    Ok(process)
}

/// What the guest's process said last, if it is in a file.
fn died(name: &str, status: &str, log: &Path) -> Error {
    let said = std::fs::read_to_string(log).unwrap_or_default();
    let last = said.lines().next_back().unwrap_or_default();
    let last = last.strip_prefix("xpv: ").unwrap_or(last);
    let colon = if last.is_empty() { "" } else { ": " };
    Error::Other(format!("the process of {name} ended ({status}){colon}{last}"))
}

fn devices(domid: DomId, config: &GuestConfig) -> Vec<NewDevice> {
    let disks = config.disks.iter().map(|disk| vbd::nodes(domid, disk));
    let vifs = config.vifs.iter().enumerate().map(|(index, vif)| {
        let mac = vif.mac.unwrap_or_else(|| Mac::xen(rand::random()));
        vif::nodes(domid, vif, vif.devid.unwrap_or(index as u32), mac)
    });
    disks.chain(vifs).collect()
}

/// Ends a guest: its process is killed, its domain and all its nodes go.
///
/// # Errors
/// The first thing that could not be done; the rest is tried all the same.
pub fn remove(machine: &mut Machine, domid: DomId, name: &str) -> Result<()> {
    let info = machine.domains()?.into_iter().find(|d| d.domid == domid);
    let killed = info.and_then(|d| d.pid).map_or(Ok(()), process::kill_now);
    let destroyed = match machine.control.destroy(domid) {
        // Somebody was faster: the machine itself removes a guest whose process ended.
        Err(hypervisor::Error::NoSuchDomain(_)) => Ok(()),
        done => done.map_err(Error::from),
    };
    let dom0_serves = machine.need_dom0().is_ok();
    let removed = domain::remove(&mut machine.store, domid, dom0_serves);
    let directory = machine.dir.guest(name);
    let emptied = match std::fs::remove_dir_all(&directory) {
        Err(e) if e.kind() != std::io::ErrorKind::NotFound => {
            Err(Error::file(directory, "removing the guest's directory", e))
        }
        _ => Ok(()),
    };
    killed.and(destroyed).and(removed).and(emptied)
}

/// A random UUID (RFC 9562, version 4).
fn uuid(random: [u8; 16]) -> String {
    let mut bytes = random;
    bytes[6] = bytes[6] & 0x0f | 0x40;
    bytes[8] = bytes[8] & 0x3f | 0x80;
    let hex: String = bytes.iter().map(|b| format!("{b:02x}")).collect();
    [&hex[..8], &hex[8..12], &hex[12..16], &hex[16..20], &hex[20..]].join("-")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_uuid_says_that_it_is_random() {
        assert_eq!(uuid([0xff; 16]), "ffffffff-ffff-4fff-bfff-ffffffffffff");
    }
}
