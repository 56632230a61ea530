//! Removes taps and inflight regions of an earlier process whose devices were removed while no backend was running.

use std::path::Path;

use ::bridge::port::netdev::NetError;
use ::bridge::port::tap::Tap;
use inflight::InflightDir;
use xenstore::{Client, DomId, Nodes};

use crate::error::{Error, Result, chain};
use crate::tap_owner::{Holder, TapOwner};

/// Removes the taps of the machine in `dir` and the regions in `inflight_dir` of devices that no longer exist.
///
/// A tap that is not marked as this machine's is kept, as another program may have created it. The exception is one
/// that is named after a vif with an inflight region: a version of xpv that did not mark its taps created it.
///
/// # Errors
/// The network interfaces or the regions cannot be listed, or a request to the store fails.
pub fn remove(store: &mut Client, domid: DomId, dir: &Path, inflight_dir: &InflightDir) -> Result<()> {
    let names = inflight_dir.names()?;
    let regions: Vec<_> = names.iter().filter_map(|name| Some((name, parse_region_name(name)?))).collect();
    for interface in
        nix::net::if_::if_nameindex().map_err(|e| Error::io("listing network interfaces", e))?.iter()
    {
        let name = interface.name().to_string_lossy();
        let was_served = |front, id| regions.iter().any(|(_, device)| *device == ("vif", front, id));
        if let Some((front, id)) = vif_of(&name, dir, was_served)
            && is_removed(store, domid, ("vif", front, id))?
        {
            match remove_tap(&name) {
                Ok(()) => tracing::info!(tap = %name, "removed the tap of a removed vif"),
                Err(error) => {
                    tracing::warn!(tap = %name, error = %chain(&error), "failed to remove the tap of a removed vif");
                }
            }
        }
    }
    for (name, device) in regions {
        if is_removed(store, domid, device)? {
            inflight_dir.remove(name);
        }
    }
    Ok(())
}

/// Whether the backend's node of a device, given by its kind, frontend domain and number, does not exist.
fn is_removed(store: &mut Client, domid: DomId, (kind, front, id): (&str, DomId, u32)) -> Result<bool> {
    Ok(!store.exists(&format!("/local/domain/{domid}/backend/{kind}/{front}/{id}"))?)
}

/// The frontend domain and number of the vif whose tap the interface is, if the machine in `dir` created it.
fn vif_of(interface: &str, dir: &Path, was_served: impl Fn(DomId, u32) -> bool) -> Option<(DomId, u32)> {
    match Holder::of(interface).ok()? {
        Holder::Vif(owner) => {
            (TapOwner::new(dir, owner.domid, owner.devid) == owner).then_some((owner.domid, owner.devid))
        }
        Holder::UnmarkedTap { persistent: true } => {
            parse_tap_name(interface).filter(|(front, id)| was_served(*front, *id))
        }
        _ => None,
    }
}

/// Parses an inflight region's name, `vbd-7-51712` or `vif-7-0-tx`, with `.part` behind it if a process was killed while it
/// created the region: the device's kind, frontend domain and number.
fn parse_region_name(name: &str) -> Option<(&str, DomId, u32)> {
    let mut parts = name.strip_suffix(".part").unwrap_or(name).split('-');
    Some((parts.next()?, parts.next()?.parse().ok()?, parts.next()?.parse().ok()?))
}

/// Parses the name of a vif's tap, `vif7.0`: the frontend domain and the device number.
fn parse_tap_name(interface: &str) -> Option<(DomId, u32)> {
    let (front, id) = interface.strip_prefix("vif")?.split_once('.')?;
    Some((front.parse().ok()?, id.parse().ok()?))
}

fn remove_tap(interface: &str) -> Result<(), NetError> {
    Tap::open(interface)?.persist()?.end()
}

#[cfg(test)]
mod tests {
    use super::*;
    use xenstore::server::{Config, Store};

    #[test]
    fn only_names_of_vifs_taps_are_parsed() {
        assert_eq!(parse_tap_name("vif7.1"), Some((DomId(7), 1)));
        assert_eq!(["vif7.1-emu", "vif7", "eth7.1", "vif70000.0"].map(parse_tap_name), [None; 4]);
    }

    #[test]
    fn inflight_regions_of_removed_devices_are_deleted() {
        assert_eq!(parse_region_name("vif-7-0-tx"), Some(("vif", DomId(7), 0)));
        assert_eq!(["vbd-7", "vbd-x-1", "other"].map(parse_region_name), [None; 3]);
        let store = Store::spawn(Config::default()).unwrap();
        let mut client = store.client().unwrap();
        client.write("/local/domain/0/backend/vbd/7/51712/state", "4").unwrap();
        let directory = tempfile::tempdir().unwrap();
        let inflight_dir = InflightDir::new(directory.path()).unwrap();
        for name in ["vbd-7-51712", "vbd-7-51728", "vbd-7-51744.part", "vif-8-0-tx", "other"] {
            inflight_dir.create(name, "", 1).unwrap();
        }
        remove(&mut client, DomId::DOM0, directory.path(), &inflight_dir).unwrap();
        let mut remaining = inflight_dir.names().unwrap();
        remaining.sort();
        assert_eq!(remaining, ["other", "vbd-7-51712"]);
    }
}
