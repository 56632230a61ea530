//! Which bridge a vif joins: one of ours by its name or, on a real host, a Linux bridge by way of a tap.
//!
//! A tap of its own makes a vif look as the kernel's does: an interface named `vif<domid>.<devid>`, there before the
//! toolstack runs the vif's hotplug script. Stock scripts (vif-bridge, vif-route, vif-nat) set it up as they always
//! do. With any other script nobody would: then the tap is put into the Linux bridge of the key `bridge` here.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use ::bridge::port::{netdev, packet::Packet, tap::Tap};
use ::bridge::{Bridge, Config, Port};
use nix::errno::Errno;
use xenstore::Keys;
use xenstore::driver::Failure;
use xenstore::xenbus::Device;

use crate::config::host::{BridgeConfig, HostPort};
use crate::config::vif::{DEFAULT_BRIDGE, DEFAULT_MTU};
use crate::error::{Error, Result};

/// The bridges of this program.
pub struct Bridges(BTreeMap<String, Arc<Bridge>>);

impl Bridges {
    /// Starts them, with their ports towards the host.
    ///
    /// # Errors
    /// A port cannot be had, or a name stands twice.
    pub fn start(configs: &[BridgeConfig]) -> Result<Bridges> {
        let mut bridges = BTreeMap::new();
        for config in configs {
            let failed = |e: &dyn std::fmt::Display| Error::Other(format!("bridge {}: {e}", config.name));
            let bridge = start(&config.name).map_err(|e| failed(&e))?;
            for port in &config.ports {
                let opened = open(port).map_err(|e| failed(&e))?;
                bridge.attach(&port.to_string(), opened).map_err(|e| failed(&e))?;
            }
            if bridges.insert(config.name.clone(), Arc::new(bridge)).is_some() {
                return Err(failed(&"it is named twice"));
            }
        }
        Ok(Bridges(bridges))
    }

    /// Their names.
    pub fn names(&self) -> impl Iterator<Item = &str> + Clone {
        self.0.keys().map(String::as_str)
    }

    /// The bridge of ours that a vif's keys name.
    ///
    /// # Errors
    /// There is none of that name.
    pub fn ours(&self, keys: &Keys) -> Result<Arc<Bridge>, Failure> {
        let name = keys.get("bridge").unwrap_or(DEFAULT_BRIDGE);
        self.0.get(name).cloned().ok_or_else(|| {
            let what = format!("bridge: found {name:?}, expected the name of a bridge of this domain");
            Failure::new(Errno::ENODEV as i32, what)
        })
    }

    /// The bridge of ours that a vif's keys name, or one of its own that joins it to a tap.
    ///
    /// # Errors
    /// The tap cannot be had, or nobody would ever join it to anything.
    pub fn ours_or_tap(&self, device: &Device, keys: &Keys) -> Result<Arc<Bridge>, Failure> {
        if let Some(bridge) = keys.get("bridge").and_then(|name| self.0.get(name)) {
            return Ok(bridge.clone());
        }
        let name = netback::vif_name(device, keys);
        let bridge = join_tap(&name, keys)?;
        tracing::info!(vif = name, script = keys.get("script"), "a tap stands for it");
        Ok(bridge)
    }
}

/// A bridge of two ports, one of which is the tap `name`.
fn join_tap(name: &str, keys: &Keys) -> Result<Arc<Bridge>, Failure> {
    let mtu = keys.or("mtu", DEFAULT_MTU).map_err(|e| Failure::new(Errno::EINVAL as i32, e))?;
    let mut tap = Tap::open(name).map_err(refused)?;
    tap.set_mtu(mtu).map_err(refused)?;
    if !is_stock(keys.get("script")) {
        let bridge = keys.get("bridge").unwrap_or(DEFAULT_BRIDGE);
        netdev::join_bridge(tap.name(), bridge).map_err(refused)?;
        netdev::set_up(tap.name()).map_err(refused)?;
    }
    let bridge = start(name).map_err(refused)?;
    bridge.attach("tap", Box::new(tap)).map_err(refused)?;
    Ok(Arc::new(bridge))
}

/// Whether a hotplug script sets up an interface named as the kernel's: Xen's own are called `vif-*`.
fn is_stock(script: Option<&str>) -> bool {
    let name = script.and_then(|path| Path::new(path).file_name()).and_then(|name| name.to_str());
    name.is_some_and(|name| name.starts_with("vif-"))
}

fn start(name: &str) -> Result<Bridge, ::bridge::Error> {
    Bridge::start(Config { name: name.into(), ..Config::default() })
}

fn refused(error: impl std::fmt::Display) -> Failure {
    Failure::new(Errno::ENODEV as i32, error)
}

fn open(port: &HostPort) -> Result<Box<dyn Port>, netdev::NetError> {
    match port {
        HostPort::Tap(name) => {
            let tap = Tap::open(name)?;
            netdev::set_up(tap.name())?;
            Ok(Box::new(tap))
        }
        HostPort::Packet(name) => {
            netdev::set_up(name)?;
            Ok(Box::new(Packet::open(name)?))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn xens_own_scripts_are_known_by_their_names() {
        assert!(is_stock(Some("/etc/xen/scripts/vif-bridge")) && is_stock(Some("vif-nat")));
        assert!(!is_stock(Some("/bin/true")) && !is_stock(Some("/etc/xen/vif-x/nop")) && !is_stock(None));
    }

    #[test]
    fn a_bridge_that_is_not_ours_is_named() {
        let keys = Keys::new("/b").with("bridge", "br7");
        let error = Bridges::start(&[]).unwrap().ours(&keys).err().unwrap();
        assert!(error.what.contains("br7"), "{}", error.what);
    }
}
