//! Which bridge a vif joins: one of ours by its name or, on a real host, a Linux bridge by way of a tap.
//!
//! A tap of its own makes a vif look as the kernel's does: an interface named `vif<domid>.<devid>`, there before the
//! toolstack runs the vif's hotplug script. Stock scripts (vif-bridge, vif-route, vif-nat) set it up as they always
//! do. With any other script nobody would: then the tap is put into the Linux bridge of the key `bridge` here. It
//! outlives this program, since nobody would run the script again for the next one, and goes when the vif does.
//!
//! Which taps the next program takes over: those marked as this vif's ([`TapOwner`]). Versions before the mark
//! left taps without one; such a tap is taken over where the vif's state says that a backend served it (InitWait
//! to Connected), so that xpv can be replaced by a newer one under running guests, and is marked then. Any other
//! interface of that name is somebody else's: the vif is refused, or waits where the interface is another vif's.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use ::bridge::port::{netdev, netdev::NetError, packet::Packet, tap::Tap};
use ::bridge::{Bridge, Config, Port};
use netback::Attachment;
use nix::errno::Errno;
use xenstore::driver::Failure;
use xenstore::xenbus::Device;
use xenstore::{Keys, XenbusState};

use crate::config::host::{BridgeConfig, HostPort};
use crate::config::vif::DEFAULT_BRIDGE;
use crate::error::{Error, Result};
use crate::tap_owner::{Holder, TapOwner};

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
    pub fn ours(&self, keys: &Keys) -> Result<Attachment, Failure> {
        let name = keys.get("bridge").unwrap_or(DEFAULT_BRIDGE);
        self.0.get(name).cloned().map(Attachment::port_of).ok_or_else(|| {
            let what = format!("bridge: found {name:?}, expected the name of a bridge of this domain");
            Failure::new(Errno::ENODEV as i32, what)
        })
    }

    /// The bridge of ours that a vif's keys name, or one of its own that joins it to a tap of the machine in `dir`.
    ///
    /// # Errors
    /// The tap cannot be had, its name is somebody else's, or nobody would ever join it to anything.
    pub fn ours_or_tap(&self, dir: &Path, device: &Device, keys: &Keys) -> Result<Attachment, Failure> {
        if let Some(bridge) = keys.get("bridge").and_then(|name| self.0.get(name)) {
            return Ok(Attachment::port_of(bridge.clone()));
        }
        let name = tap_name(device, keys);
        let place = join_tap(&name, &TapOwner::new(dir, device.front, device.id), keys)?;
        tracing::info!(vif = name, script = keys.get("script"), "a tap stands for it");
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

/// The tap `name` of `owner`, and whether an earlier process left it.
fn create_or_take_over(name: &str, owner: &TapOwner, keys: &Keys) -> Result<(Tap, bool), Failure> {
    match Tap::create(name) {
        // Before it is made to last: one that lasts without its mark would be nobody's.
        Ok(tap) => owner.mark(name).map(|()| (tap, false)).map_err(refused),
        Err(NetError::Exists(_)) => {
            // The vif that had it may let it go at this very moment.
            let holder = Holder::of(name).map_err(|e| Failure::new(Errno::EBUSY as i32, e))?;
            may_take_over(name, &holder, owner, keys)?;
            let tap = Tap::open(name).map_err(|error| match error {
                // By a process that is ending, perhaps.
                NetError::Busy(_) => Failure::new(Errno::EBUSY as i32, error),
                error => refused(error),
            })?;
            if !matches!(holder, Holder::Vif(_)) {
                tracing::warn!(
                    tap = name,
                    "taken over without a mark: it was left by an earlier version of xpv"
                );
            }
            owner.mark(name).map_err(refused)?;
            Ok((tap, true))
        }
        Err(error) => Err(refused(error)),
    }
}

/// Whether the interface `name` that exists is this vif's tap, left by an earlier process.
fn may_take_over(name: &str, holder: &Holder, owner: &TapOwner, keys: &Keys) -> Result<(), Failure> {
    let served = [XenbusState::InitWait, XenbusState::Initialised, XenbusState::Connected];
    let was_served = served.iter().any(|state| keys.get("state") == Some(state.as_text()));
    let (errno, how) = match holder {
        Holder::Vif(left) if left == owner => return Ok(()),
        Holder::UnmarkedTap { persistent: true } if was_served => return Ok(()),
        // Perhaps for a moment only: a vif that is going, or a process that this one is to replace.
        Holder::Vif(_) => (Errno::EBUSY, "waiting for it to go"),
        _ => (Errno::EEXIST, "and not taken over"),
    };
    let what = format!(
        "network interface {name:?} exists already and is {holder}, {how}; `ip link delete {name}` removes it if \
         nobody needs it"
    );
    Err(Failure::new(errno as i32, what))
}

/// A bridge of two ports, one of which is the tap `name` of `owner`.
fn join_tap(name: &str, owner: &TapOwner, keys: &Keys) -> Result<Attachment, Failure> {
    let (mut tap, was_left) = create_or_take_over(name, owner, keys)?;
    if is_ours_to_join(keys, was_left) && netdev::master(name).is_none() {
        let bridge = keys.get("bridge").unwrap_or(DEFAULT_BRIDGE);
        let mtu = keys.opt("mtu").map_err(|e| Failure::new(Errno::EINVAL as i32, e))?;
        // As vif-bridge does: a port of another mtu would change the bridge's.
        tap.set_mtu(mtu.map_or_else(|| netdev::mtu(bridge), Ok).map_err(refused)?).map_err(refused)?;
        netdev::join_bridge(name, bridge).map_err(refused)?;
        netdev::set_up(name).map_err(refused)?;
    }
    let (bridge, persistence) = (start(name).map_err(refused)?, tap.persist().map_err(refused)?);
    bridge.attach("tap", Box::new(tap)).map_err(refused)?;
    let cleanup = move || {
        if let Err(error) = persistence.end() {
            tracing::warn!(%error, "a vif's tap stays");
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

fn refused(error: impl std::fmt::Display) -> Failure {
    Failure::new(Errno::ENODEV as i32, error)
}

fn open(port: &HostPort) -> Result<Box<dyn Port>, netdev::NetError> {
    match port {
        HostPort::Tap(name) => {
            if let Ok(holder) = Holder::of(name) {
                // As it was asked to: such a tap is made before, so that it outlives this process.
                tracing::info!(tap = name, "taken over: it exists already, and is {holder}");
            }
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
    use xenstore::DomId;

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
        let device = Device::new("vif", DomId(3), 1);
        let keys = Keys::new("/b").with("vifname", "xpv-none");
        assert_eq!(tap_name(&device, &keys), "xpv-none");
        assert_eq!(tap_name(&device, &keys.with("script", "vif-bridge")), "vif3.1");
    }

    #[test]
    fn a_tap_is_taken_over_by_its_own_vif_alone() {
        let owner = TapOwner { dir: "/run/xpv".into(), domid: DomId(3), devid: 1 };
        let other_dir = TapOwner { dir: "/run/b".into(), ..owner.clone() };
        let other_vif = TapOwner { domid: DomId(2), ..owner.clone() };
        let unmarked = Holder::UnmarkedTap { persistent: true };
        let keys = |state: XenbusState| Keys::new("/b").with("state", state.as_text());
        let new = keys(XenbusState::Initialising);
        let takes = |holder: &Holder, keys: &Keys| {
            may_take_over("vif3.1", holder, &owner, keys).map_err(|failure| (failure.errno, failure.what))
        };
        assert_eq!(takes(&Holder::Vif(owner.clone()), &new), Ok(()));
        for other in [other_dir, other_vif] {
            let (errno, what) = takes(&Holder::Vif(other.clone()), &new).unwrap_err();
            assert_eq!(errno, Errno::EBUSY as i32);
            assert!(
                what.contains(&format!("of domain {} of the xpv machine in {}", other.domid, other.dir)),
                "{what}"
            );
        }
        for state in [XenbusState::InitWait, XenbusState::Connected] {
            assert_eq!(takes(&unmarked, &keys(state)), Ok(()), "left by a version that did not mark it");
            let attached = Holder::UnmarkedTap { persistent: false };
            assert!(takes(&attached, &keys(state)).is_err(), "another program's, that goes with it");
        }
        for (holder, keys) in
            [(&unmarked, &new), (&unmarked, &keys(XenbusState::Closing)), (&Holder::Other, &new)]
        {
            let (errno, what) = takes(holder, keys).unwrap_err();
            assert_eq!(errno, Errno::EEXIST as i32);
            assert!(what.contains("\"vif3.1\"") && what.contains("`ip link delete vif3.1`"), "{what}");
        }
    }

    #[test]
    fn a_bridge_that_is_not_ours_is_named() {
        let keys = Keys::new("/b").with("bridge", "br7");
        let error = Bridges::start(&[]).unwrap().ours(&keys).err().unwrap();
        assert!(error.what.contains("br7"), "{}", error.what);
    }
}
