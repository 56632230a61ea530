//! The bridge of a vif, as the program that serves vifs has found it, and the name of the vif's port.

use bridge::{Bridge, Lock};
use ring_abi::DomId;
use ring_abi::netif::key;
use std::sync::Arc;
use xenbus::{Device, Keys};

/// The bridge of a vif, and how the vif is attached to it.
pub struct Attachment {
    /// The bridge that the vif is a port of.
    pub bridge: Arc<Bridge>,
    /// Whether the key `mtu` bounds the frames sent to the guest. `false` where the bridge joins the vif to an
    /// interface of this machine, whose mtu the machine's administrator sets.
    pub limit_mtu: bool,
    /// Which frames the guest may send by their addresses, unless the key `lock` says another.
    pub lock: Lock,
    /// Called when the device is removed or closed, and not when the driver stops: a successor needs the bridge then.
    pub cleanup: Option<Box<dyn FnOnce() + Send>>,
}

impl Attachment {
    /// An attachment to a bridge with many ports, where the guest may send from its own address alone, or to a wire, which has no
    /// filter.
    pub fn port_of(bridge: Arc<Bridge>) -> Self {
        let lock = if bridge.is_wire() { Lock::Off } else { Lock::Mac };
        Self { bridge, limit_mtu: true, lock, cleanup: None }
    }
}

/// The usual name of a vif, which Linux's backend gives its interface: `vif<domid>.<devid>`.
pub fn default_vif_name(domid: DomId, devid: u32) -> String {
    format!("vif{domid}.{devid}")
}

/// The name of a vif's port: its key `vifname`, or `vif<domid>.<handle>`.
pub fn vif_name(device: &Device, keys: &Keys) -> String {
    match keys.get(key::VIFNAME) {
        Some(name) if !name.is_empty() => name.to_owned(),
        _ => default_vif_name(device.front, device.id),
    }
}
