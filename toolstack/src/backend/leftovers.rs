//! What an earlier process has left of devices that are no more: a guest can go while nobody serves it.

use std::path::Path;

use ::bridge::port::netdev::NetError;
use ::bridge::port::tap::Tap;
use hypervisor::InflightDir;
use xenstore::{Client, DomId, Nodes};

use crate::error::{Error, Result};
use crate::tap_owner::{Holder, TapOwner};

/// Removes the taps of the machine in `dir`, and what it kept of rings in `keep`.
///
/// A tap that is not marked as the machine's stays: it may be anybody's. The exception is one that is named after
/// a vif whose rings the machine kept something of; it was left by a version of xpv that did not mark its taps.
///
/// # Errors
/// The store's, and the system's.
pub fn clear(store: &mut Client, domid: DomId, dir: &Path, keep: &InflightDir) -> Result<()> {
    let names = keep.names()?;
    let kept: Vec<_> = names.iter().filter_map(|name| Some((name, kept(name)?))).collect();
    for interface in
        nix::net::if_::if_nameindex().map_err(|e| Error::io("listing network interfaces", e))?.iter()
    {
        let name = interface.name().to_string_lossy();
        let was_served = |front, id| kept.iter().any(|(_, device)| *device == ("vif", front, id));
        if let Some((front, id)) = vif_of(&name, dir, was_served)
            && is_gone(store, domid, ("vif", front, id))?
        {
            match remove(&name) {
                Ok(()) => tracing::info!(tap = %name, "removed: its vif is no more"),
                Err(error) => tracing::warn!(tap = %name, %error, "stays, though its vif is no more"),
            }
        }
    }
    for (name, device) in kept {
        if is_gone(store, domid, device)? {
            keep.forget(name);
        }
    }
    Ok(())
}

/// Whether the backend's node of a device, by its kind, guest and number, is no more.
fn is_gone(store: &mut Client, domid: DomId, (kind, front, id): (&str, DomId, u32)) -> Result<bool> {
    Ok(!store.exists(&format!("/local/domain/{domid}/backend/{kind}/{front}/{id}"))?)
}

/// The guest and number of the vif whose tap the interface is, where the machine in `dir` made it.
fn vif_of(interface: &str, dir: &Path, was_served: impl Fn(DomId, u32) -> bool) -> Option<(DomId, u32)> {
    match Holder::of(interface).ok()? {
        Holder::Vif(owner) => {
            (TapOwner::new(dir, owner.domid, owner.devid) == owner).then_some((owner.domid, owner.devid))
        }
        Holder::UnmarkedTap { persistent: true } => {
            vif(interface).filter(|(front, id)| was_served(*front, *id))
        }
        _ => None,
    }
}

/// The kind, guest and number of the device whose ring something was kept of by this name: `vbd-7-51712`,
/// `vif-7-0-tx`.
fn kept(name: &str) -> Option<(&str, DomId, u32)> {
    let mut parts = name.split('-');
    let (kind, front, id) = (parts.next()?, parts.next()?.parse().ok()?, parts.next()?);
    Some((kind, front, id.parse().ok()?))
}

/// The guest and number of the vif that an interface of this name stands for.
fn vif(interface: &str) -> Option<(DomId, u32)> {
    let (front, id) = interface.strip_prefix("vif")?.split_once('.')?;
    Some((front.parse().ok()?, id.parse().ok()?))
}

fn remove(interface: &str) -> Result<(), NetError> {
    Tap::open(interface)?.persist()?.end()
}

#[cfg(test)]
mod tests {
    use super::*;
    use xenstore::server::{Config, Store};

    #[test]
    fn names_are_those_of_vifs() {
        assert_eq!(vif("vif7.1"), Some((DomId(7), 1)));
        assert_eq!([vif("vif7.1-emu"), vif("vif7"), vif("eth7.1"), vif("vif70000.0")], [None; 4]);
    }

    #[test]
    fn what_is_kept_of_devices_that_are_no_more_is_forgotten() {
        assert_eq!(kept("vif-7-0-tx"), Some(("vif", DomId(7), 0)));
        assert_eq!([kept("vbd-7"), kept("vbd-x-1"), kept("other")], [None; 3]);
        let store = Store::spawn(Config::default()).unwrap();
        let mut client = store.client().unwrap();
        client.write("/local/domain/0/backend/vbd/7/51712/state", "4").unwrap();
        let directory = tempfile::tempdir().unwrap();
        let keep = InflightDir::new(directory.path()).unwrap();
        for name in ["vbd-7-51712", "vbd-7-51728", "vif-8-0-tx", "other"] {
            keep.create(name, "", 1).unwrap();
        }
        clear(&mut client, DomId::DOM0, directory.path(), &keep).unwrap();
        let mut left = keep.names().unwrap();
        left.sort();
        assert_eq!(left, ["other", "vbd-7-51712"]);
    }
}
