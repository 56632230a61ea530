//! A network interface's nodes: the keys of libxl's `libxl__set_xenstore_nic`.
//!
//! `hotplug-status` is not written: libxl writes it empty to make a backend wait for a script, and none is run here.

use bridge::{Flags, StormLimits};
use ring_abi::netif::key::{
    BRIDGE, IP, LOCK, MAC, MTU, RATE, RATE_IN, RATE_IN_PACKETS, RATE_PACKETS, VIFNAME, VLAN,
};
use ring_abi::netif::{MTU_DEFAULT, Mac};
use ring_abi::xenbus::key::{HANDLE, SCRIPT, TRUSTED, TYPE};
use xenbus::Device;
use xenstore::DomId;

use super::device::NewDevice;
use crate::config::VifSpec;

/// Returns the nodes of interface `devid` of a domain, with the MAC address `mac`.
pub fn nodes(domid: DomId, vif: &VifSpec, devid: u32, mac: Mac) -> NewDevice {
    let mut new = NewDevice::new(Device::new("vif", domid, devid));
    let vifname = vif.vifname.clone().unwrap_or_else(|| netback::default_vif_name(domid, devid));
    new.back
        .set(MAC, mac)
        .set(BRIDGE, &vif.bridge)
        .set(VIFNAME, vifname)
        .set(SCRIPT, "")
        .set(HANDLE, devid)
        .set(TYPE, "vif");
    for (name, rate) in [(RATE, vif.rate), (RATE_IN, vif.rate_in)] {
        if let Some(rate) = rate {
            new.back.set(name, rate);
        }
    }
    for (name, rate) in [(RATE_PACKETS, vif.rate_packets), (RATE_IN_PACKETS, vif.rate_in_packets)] {
        if let Some(rate) = rate {
            new.back.set(name, rate);
        }
    }
    if let Some(lock) = vif.lock {
        new.back.set(LOCK, lock);
    }
    for (flag, on) in &vif.flags {
        new.back.set(flag.name(), Flags::text(*on));
    }
    for (flood, limit) in &vif.storm {
        new.back.set(flood.limit_name(), StormLimits::text(*limit));
    }
    if let Some(vlan) = &vif.vlan {
        new.back.set(VLAN, vlan);
    }
    if !vif.ip.is_empty() {
        new.back.set(IP, &vif.ip);
    }
    if vif.mtu != MTU_DEFAULT {
        new.back.set(MTU, vif.mtu);
    }
    new.front.set(HANDLE, devid).set(MAC, mac).set(TRUSTED, u8::from(vif.trusted));
    new.front_read_only.set(MTU, vif.mtu);
    new
}
