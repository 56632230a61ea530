//! An interface's nodes: the keys of libxl's `libxl__set_xenstore_nic`.
//!
//! `hotplug-status` is not written: libxl writes it empty to make a backend wait for a script, and there is none.

use ring_abi::netif::{MTU_DEFAULT, Mac};
use xenstore::DomId;
use xenstore::xenbus::Device;

use super::device::NewDevice;
use crate::config::VifSpec;

/// The nodes of an interface for a domain: its number there, and its address.
pub fn nodes(domid: DomId, vif: &VifSpec, devid: u32, mac: Mac) -> NewDevice {
    let mut new = NewDevice::new(Device::new("vif", domid, devid));
    let vifname = vif.vifname.clone().unwrap_or_else(|| format!("vif{domid}.{devid}"));
    new.back
        .set("mac", mac)
        .set("bridge", &vif.bridge)
        .set("vifname", vifname)
        .set("script", "")
        .set("handle", devid)
        .set("type", "vif");
    if let Some(rate) = vif.rate {
        new.back.set("rate", rate);
    }
    if vif.mtu != MTU_DEFAULT {
        new.back.set("mtu", vif.mtu);
    }
    new.front.set("handle", devid).set("mac", mac).set("trusted", u8::from(vif.trusted));
    new.front_read_only.set("mtu", vif.mtu);
    new
}

/// The lowest number from 0 on that is not among these.
pub fn lowest_free(taken: &[Device]) -> u32 {
    (0..).find(|id| taken.iter().all(|d| d.id != *id)).unwrap_or_default()
}
