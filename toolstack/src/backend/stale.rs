//! Removes taps and inflight regions of an earlier process whose devices were removed while no backend was running.

use std::fs;

use ::bridge::port::netdev::NetError;
use ::bridge::port::tap::Tap;
use hypervisor::InflightDir;
use xenstore::{Client, DomId, Nodes};

use crate::error::{Result, chain};

/// `IFF_PERSIST` (linux/if_tun.h): the interface remains when its program exits.
const PERSISTENT: u32 = 0x0800;

/// Removes taps that still have the name of their vif, and inflight regions, of devices that no longer exist.
pub fn remove(store: &mut Client, domid: DomId, inflight_dir: &InflightDir) -> Result<()> {
    for name in inflight_dir.names()? {
        let Some((kind, front, id)) = parse_region_name(&name) else { continue };
        if !store.exists(&format!("/local/domain/{domid}/backend/{kind}/{front}/{id}"))? {
            inflight_dir.forget(&name);
        }
    }
    remove_taps(store, domid)
}

fn remove_taps(store: &mut Client, domid: DomId) -> Result<()> {
    let interfaces = fs::read_dir("/sys/class/net").into_iter().flatten().flatten();
    for name in interfaces.filter_map(|entry| entry.file_name().into_string().ok()) {
        let Some((front, id)) = parse_tap_name(&name).filter(|_| is_persistent(&name)) else { continue };
        if store.exists(&format!("/local/domain/{domid}/backend/vif/{front}/{id}"))? {
            continue;
        }
        match remove_tap(&name) {
            Ok(()) => tracing::info!(tap = name, "removed the tap of a removed vif"),
            Err(error) => {
                tracing::warn!(tap = name, error = %chain(&error), "failed to remove the tap of a removed vif");
            }
        }
    }
    Ok(())
}

/// Parses an inflight region's name, `vbd-7-51712` or `vif-7-0-tx`: the device's kind, frontend domain and number.
fn parse_region_name(name: &str) -> Option<(&str, DomId, u32)> {
    let mut parts = name.split('-');
    Some((parts.next()?, parts.next()?.parse().ok()?, parts.next()?.parse().ok()?))
}

/// Parses the name of a vif's tap, `vif7.0`: the frontend domain and the device number.
fn parse_tap_name(interface: &str) -> Option<(DomId, u32)> {
    let (front, id) = interface.strip_prefix("vif")?.split_once('.')?;
    Some((front.parse().ok()?, id.parse().ok()?))
}

/// Whether an interface is a persistent tap, which the kernel's own vifs are not.
fn is_persistent(interface: &str) -> bool {
    let flags = fs::read_to_string(format!("/sys/class/net/{interface}/tun_flags")).unwrap_or_default();
    let flags = u32::from_str_radix(flags.trim().trim_start_matches("0x"), 16);
    flags.is_ok_and(|flags| flags & PERSISTENT != 0)
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
        assert_eq!(parse_tap_name("vif7.1"), Some((7, 1)));
        assert_eq!(["vif7.1-emu", "vif7", "eth7.1", "vif70000.0"].map(parse_tap_name), [None; 4]);
        assert!(!is_persistent("lo"));
    }

    #[test]
    fn inflight_regions_of_removed_devices_are_deleted() {
        assert_eq!(parse_region_name("vif-7-0-tx"), Some(("vif", 7, 0)));
        assert_eq!(["vbd-7", "vbd-x-1", "other"].map(parse_region_name), [None; 3]);
        let store = Store::spawn(Config::default()).unwrap();
        let mut client = store.client().unwrap();
        client.write("/local/domain/0/backend/vbd/7/51712/state", "4").unwrap();
        let directory = tempfile::tempdir().unwrap();
        let inflight_dir = InflightDir::new(directory.path()).unwrap();
        for name in ["vbd-7-51712", "vbd-7-51728", "vif-8-0-tx", "other"] {
            inflight_dir.create(name, "", 1).unwrap();
        }
        remove(&mut client, 0, &inflight_dir).unwrap();
        let mut remaining = inflight_dir.names().unwrap();
        remaining.sort();
        assert_eq!(remaining, ["other", "vbd-7-51712"]);
    }
}
