//! What an earlier process has left of devices that are no more: a guest can go while nobody serves it.

use std::fs;

use ::bridge::port::netdev::NetError;
use ::bridge::port::tap::Tap;
use hypervisor::InflightDir;
use xenstore::{Client, DomId, Nodes};

use crate::error::Result;

/// `IFF_PERSIST` (linux/if_tun.h): the interface outlives its program.
const PERSISTENT: u32 = 0x0800;

/// Removes taps, where their names are still those that they were made by, and what was kept of rings.
///
/// # Errors
/// The store's, and the system's.
pub fn clear(store: &mut Client, domid: DomId, keep: &InflightDir) -> Result<()> {
    for name in keep.names()? {
        let Some((kind, front, id)) = kept(&name) else { continue };
        if !store.exists(&format!("/local/domain/{domid}/backend/{kind}/{front}/{id}"))? {
            keep.forget(&name);
        }
    }
    clear_taps(store, domid)
}

fn clear_taps(store: &mut Client, domid: DomId) -> Result<()> {
    let interfaces = fs::read_dir("/sys/class/net").into_iter().flatten().flatten();
    for name in interfaces.filter_map(|entry| entry.file_name().into_string().ok()) {
        let Some((front, id)) = vif(&name).filter(|_| is_left(&name)) else { continue };
        if store.exists(&format!("/local/domain/{domid}/backend/vif/{front}/{id}"))? {
            continue;
        }
        match remove(&name) {
            Ok(()) => tracing::info!(tap = name, "removed: its vif is no more"),
            Err(error) => tracing::warn!(tap = name, %error, "stays, though its vif is no more"),
        }
    }
    Ok(())
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

/// Whether it is a tap that lasts: the kernel's own vifs are none.
fn is_left(interface: &str) -> bool {
    let flags = fs::read_to_string(format!("/sys/class/net/{interface}/tun_flags")).unwrap_or_default();
    let flags = u32::from_str_radix(flags.trim().trim_start_matches("0x"), 16);
    flags.is_ok_and(|flags| flags & PERSISTENT != 0)
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
        assert!(!is_left("lo"));
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
        clear(&mut client, DomId::DOM0, &keep).unwrap();
        let mut left = keep.names().unwrap();
        left.sort();
        assert_eq!(left, ["other", "vbd-7-51712"]);
    }
}
