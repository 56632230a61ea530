//! Which bridge a vif joins: one of ours by its name or, on a real host, a Linux bridge by way of a tap.
//!
//! A tap of its own makes a vif look as the kernel's does: an interface named `vif<domid>.<devid>`, there before the
//! toolstack runs the vif's hotplug script. Stock scripts (vif-bridge, vif-route, vif-nat) set it up as they always
//! do. With any other script nobody would: then the tap is put into the Linux bridge of the key `bridge` here. It
//! outlives this program, since nobody would run the script again for the next one, and goes when the vif does.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use ::bridge::port::{netdev, netdev::NetError, packet::Packet, tap::Tap};
use ::bridge::{Bridge, Config, Port};
use netback::Attachment;
use nix::errno::Errno;
use xenstore::Keys;
use xenstore::driver::Failure;
use xenstore::xenbus::Device;

use crate::config::host::{BridgeConfig, HostPort};
use crate::config::vif::DEFAULT_BRIDGE;
use crate::error::{Error, Result, chain};

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
            let failed =
                |e: &dyn std::error::Error| Error::Other(format!("bridge {}: {}", config.name, chain(e)));
            let bridge = start(&config.name).map_err(|e| failed(&e))?;
            for port in &config.ports {
                let opened = open(port).map_err(|e| failed(&e))?;
                bridge.attach(&port.to_string(), opened).map_err(|e| failed(&e))?;
            }
            if bridges.insert(config.name.clone(), Arc::new(bridge)).is_some() {
                return Err(Error::Other(format!("bridge {}: it is named twice", config.name)));
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
    pub fn ours(&self, keys: &Keys) -> Result<Attachment, Failure> {
        let name = keys.get("bridge").unwrap_or(DEFAULT_BRIDGE);
        self.0.get(name).cloned().map(Attachment::port_of).ok_or_else(|| {
            let what = format!("bridge: found {name:?}, expected the name of a bridge of this domain");
            Failure::new(Errno::ENODEV as i32, what)
        })
    }

    /// The bridge of ours that a vif's keys name, or one of its own that joins it to a tap.
    ///
    /// # Errors
    /// The tap cannot be had, or nobody would ever join it to anything.
    pub fn ours_or_tap(&self, device: &Device, keys: &Keys) -> Result<Attachment, Failure> {
        if let Some(bridge) = keys.get("bridge").and_then(|name| self.0.get(name)) {
            return Ok(Attachment::port_of(bridge.clone()));
        }
        let name = tap_name(device, keys);
        let place = join_tap(&name, keys)?;
        tracing::info!(vif = name, script = keys.get("script"), "attached to a tap");
        Ok(place)
    }
}

/// What the tap is called: as the kernel's interface would be, since stock scripts rename that to what the key
/// `vifname` says; or so already, where they have.
fn tap_name(device: &Device, keys: &Keys) -> String {
    let wanted = netback::vif_name(device, keys);
    match is_stock(keys.get("script")) && !exists(&wanted) {
        true => format!("vif{}.{}", device.front, device.id),
        false => wanted,
    }
}

/// A bridge of two ports, one of which is the tap `name`.
fn join_tap(name: &str, keys: &Keys) -> Result<Attachment, Failure> {
    let was_left = exists(name);
    let mut tap = Tap::open(name).map_err(|error| match error {
        // By a process that is ending, perhaps.
        NetError::Busy(_) => Failure::new(Errno::EBUSY as i32, chain(&error)),
        error => refused(error),
    })?;
    if is_ours_to_join(keys, was_left) && netdev::master(name).is_none() {
        let bridge = keys.get("bridge").unwrap_or(DEFAULT_BRIDGE);
        let mtu = keys.opt("mtu").map_err(|e| Failure::new(Errno::EINVAL as i32, chain(&e)))?;
        // As vif-bridge does: a port of another mtu would change the bridge's.
        tap.set_mtu(mtu.map_or_else(|| netdev::mtu(bridge), Ok).map_err(refused)?).map_err(refused)?;
        netdev::join_bridge(name, bridge).map_err(refused)?;
        netdev::set_up(name).map_err(refused)?;
    }
    let (bridge, persistence) = (start(name).map_err(refused)?, tap.persist().map_err(refused)?);
    bridge.attach("tap", Box::new(tap)).map_err(refused)?;
    let cleanup = move || {
        if let Err(error) = persistence.end() {
            tracing::warn!(error = %chain(&error), "failed to remove a vif's tap");
        }
    };
    Ok(Attachment { bridge: Arc::new(bridge), limit_mtu: false, cleanup: Some(Box::new(cleanup)) })
}

/// Whether the tap is put into a Linux bridge here: where no stock script will do that, or vif-bridge has done it
/// for an earlier tap that is no more.
fn is_ours_to_join(keys: &Keys, was_left: bool) -> bool {
    let script = keys.get("script");
    let script_ran = keys.get("hotplug-status") == Some("connected");
    !is_stock(script) || !was_left && script_ran && script.is_some_and(|path| path.ends_with("vif-bridge"))
}

/// Whether a hotplug script sets up an interface named as the kernel's: Xen's own are called `vif-*`.
fn is_stock(script: Option<&str>) -> bool {
    let name = script.and_then(|path| Path::new(path).file_name()).and_then(|name| name.to_str());
    name.is_some_and(|name| name.starts_with("vif-"))
}

fn exists(interface: &str) -> bool {
    netdev::mtu(interface).is_ok()
}

fn start(name: &str) -> Result<Bridge, ::bridge::Error> {
    Bridge::start(Config { name: name.into(), ..Config::default() })
}

fn refused(error: impl std::error::Error) -> Failure {
    Failure::new(Errno::ENODEV as i32, chain(&error))
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
    fn a_tap_is_joined_here_where_no_script_will() {
        let stock = Keys::new("/b").with("script", "/etc/xen/scripts/vif-bridge");
        let ran = stock.clone().with("hotplug-status", "connected");
        assert!(!is_ours_to_join(&stock, false), "its script is still to come");
        assert!(is_ours_to_join(&ran, false), "nobody runs it again");
        assert!(!is_ours_to_join(&ran, true), "it was set up");
        assert!(is_ours_to_join(&Keys::new("/b").with("script", "/bin/true"), false));
        assert!(!is_ours_to_join(&ran.with("script", "vif-route"), false));
    }

    #[test]
    fn stock_scripts_rename_the_tap_themselves() {
        let (device, keys) = (Device::new("vif", 3, 1), Keys::new("/b").with("vifname", "xpv-none"));
        assert_eq!(tap_name(&device, &keys), "xpv-none");
        assert_eq!(tap_name(&device, &keys.with("script", "vif-bridge")), "vif3.1");
    }

    #[test]
    fn a_bridge_that_is_not_ours_is_named() {
        let keys = Keys::new("/b").with("bridge", "br7");
        let error = Bridges::start(&[]).unwrap().ours(&keys).err().unwrap();
        assert!(error.what.contains("br7"), "{}", error.what);
    }
}
