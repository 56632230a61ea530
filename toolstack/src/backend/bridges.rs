//! Attaches vifs to bridges: to a bridge of this program by its name or, on a real Xen host, to a tap.
//!
//! Through a tap a vif looks like one of the kernel's backend: an interface named `vif<domid>.<devid>`, which exists
//! before the toolstack runs the vif's hotplug script. Stock scripts (vif-bridge, vif-route, vif-nat) set it up as they
//! do the kernel's. With any other script the tap is added here to the Linux bridge of the key `bridge`; where that is the
//! default one, and does not exist, it is left to other programs, such as systemd-networkd. The tap is
//! persistent, since the script is not run again for the next backend process, and is removed with the vif.
//!
//! The next process takes over the taps that are marked as this vif's ([`TapOwner`]). Versions before the mark
//! created taps without one; such a tap is taken over, and marked, if the vif's state shows that a backend served it
//! (InitWait to Connected), so that xpv can be upgraded under running guests. Any other interface of that name
//! belongs to another program: the vif is refused, or waits if the interface is another vif's.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

use ::bridge::port::{netdev, netdev::NetError, packet::Packet, tap::Tap};
use ::bridge::{Bridge, Config, Lock, Port};
use netback::Attachment;
use nix::errno::Errno;
use ring_abi::netif::key::{BRIDGE, MTU};
use ring_abi::xenbus::key::{HOTPLUG_STATUS, SCRIPT, STATE};
use xenbus::Device;
use xenbus::driver::Failure;
use xenbus::{Keys, XenbusState};

use crate::config::host_bridge::{BridgeConfig, WIRE_SETTINGS};
use crate::config::host_port::{HostInterface, HostPort};
use crate::config::vif::DEFAULT_BRIDGE;
use crate::error::{Error, Origin, Result, chain};
use crate::tap_owner::{Holder, TapOwner};

/// The bridges of this program.
#[derive(Clone)]
pub struct Bridges {
    bridges: BTreeMap<String, Arc<Bridge>>,
    /// The ports to the host with what is set for them, by the names of bridge and port.
    host_ports: Arc<Mutex<BTreeMap<(String, String), HostPort>>>,
}

impl Bridges {
    /// Starts the bridges with their ports to the host.
    ///
    /// # Errors
    /// [`Error::Other`] if a port cannot be opened, or two bridges have the same name.
    pub fn start(configs: &[BridgeConfig]) -> Result<Bridges> {
        let mut bridges = BTreeMap::new();
        let mut host_ports = BTreeMap::new();
        for config in configs {
            let failed =
                |e: &dyn std::error::Error| Error::Other(format!("bridge {}: {}", config.name, chain(e)));
            let started = match config.wire {
                true => Config::wire(&config.name),
                false => Config { name: config.name.clone(), announces: true, ..Config::default() },
            };
            let bridge = Bridge::start(started).map_err(|e| failed(&e))?;
            for setting in config.settings().map_err(|e| failed(&e))? {
                bridge.set_bridge(setting).map_err(|e| failed(&e))?;
            }
            for port in &config.ports {
                attach_host_port(&bridge, port).map_err(|e| failed(&e))?;
                host_ports.insert((config.name.clone(), port.interface.to_string()), port.clone());
            }
            if bridges.insert(config.name.clone(), Arc::new(bridge)).is_some() {
                return Err(Error::Other(format!("bridge {}: it is named twice", config.name)));
            }
        }
        Ok(Bridges { bridges, host_ports: Arc::new(Mutex::new(host_ports)) })
    }

    /// The bridges by name.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &Bridge)> {
        self.bridges.iter().map(|(name, bridge)| (name.as_str(), &**bridge))
    }

    /// The bridge of this name.
    ///
    /// # Errors
    /// There is none.
    pub fn find(&self, name: &str) -> Result<&Bridge> {
        self.bridges.get(name).map(|bridge| &**bridge).ok_or_else(|| {
            let known: Vec<_> = self.names().collect();
            Error::Other(format!("bridge: found {name:?}, expected one of this dom0's: {}", known.join(", ")))
        })
    }

    /// Changes all of the settings of a port to the host that are given as `KEY=VALUE`, or none.
    ///
    /// # Errors
    /// There is no such port, it is a vif's, or a setting is invalid.
    pub fn set_port(&self, bridge: &str, port: &str, settings: &[String]) -> Result<()> {
        let found = self.find(bridge)?;
        let mut all = self.host_ports.lock().unwrap_or_else(PoisonError::into_inner);
        let key = (bridge.to_owned(), port.to_owned());
        let options = &mut all.get_mut(&key).ok_or_else(|| not_to_the_host(bridge, port))?.options;
        let mut changed = options.clone();
        settings.iter().try_for_each(|text| changed.set(&Origin::argument(port), text))?;
        if found.is_wire() && !changed.are_rates() {
            return Err(Origin::argument(port).invalid("port", &settings.join(" "), WIRE_SETTINGS));
        }
        let failed = |e: &dyn std::error::Error| Error::Other(format!("port {port}: {}", chain(e)));
        let [old, new] = [&*options, &changed].map(|options| options.settings().map_err(|e| failed(&e)));
        for setting in old?.changes_to(new?) {
            found.set(port, setting).map_err(|e| failed(&e))?;
        }
        *options = changed;
        Ok(())
    }

    /// Makes an interface of the host a port of a bridge that runs.
    ///
    /// # Errors
    /// There is no such bridge, it is a wire, or the interface cannot be opened or is a port already.
    pub fn add_port(&self, bridge: &str, port: &HostPort) -> Result<()> {
        let found = self.find_learning(bridge)?;
        let mut all = self.host_ports.lock().unwrap_or_else(PoisonError::into_inner);
        attach_host_port(found, port)?;
        all.insert((bridge.to_owned(), port.interface.to_string()), port.clone());
        Ok(())
    }

    /// The ports of a bridge to the host by their names, as a command line has them.
    pub fn host_ports(&self, bridge: &str) -> BTreeMap<String, String> {
        let all = self.host_ports.lock().unwrap_or_else(PoisonError::into_inner);
        let own = all.iter().filter(|((of, _), _)| of == bridge);
        own.map(|((_, name), port)| (name.clone(), port.to_string())).collect()
    }

    /// Gives a port to the host all the settings of this one, and no others.
    ///
    /// # Errors
    /// Those of [`Bridges::set_port`].
    pub fn reset_port(&self, bridge: &str, port: &HostPort) -> Result<()> {
        let settings = port.options.all_with_defaults();
        self.set_port(bridge, &port.interface.to_string(), &settings)
    }

    /// Removes a port to the host. A tap that dom0 has made goes with it.
    ///
    /// # Errors
    /// There is no such port, it is a vif's, or the bridge is a wire.
    pub fn remove_port(&self, bridge: &str, port: &str) -> Result<()> {
        let found = self.find_learning(bridge)?;
        let mut all = self.host_ports.lock().unwrap_or_else(PoisonError::into_inner);
        if all.remove(&(bridge.to_owned(), port.to_owned())).is_none() {
            return Err(not_to_the_host(bridge, port));
        }
        // One that failed is not there any more.
        drop(found.detach(port));
        Ok(())
    }

    fn find_learning(&self, name: &str) -> Result<&Bridge> {
        let found = self.find(name)?;
        match found.is_wire() {
            true => Err(Error::Other(format!("bridge: found {name:?}, a wire, expected a learning bridge"))),
            false => Ok(found),
        }
    }

    /// Returns the bridges' names.
    pub fn names(&self) -> impl Iterator<Item = &str> + Clone {
        self.bridges.keys().map(String::as_str)
    }

    /// Attaches a vif to the bridge of this program that its keys name.
    ///
    /// # Errors
    /// ENODEV if there is no bridge of that name.
    pub fn attach(&self, keys: &Keys) -> Result<Attachment, Failure> {
        let name = keys.get(BRIDGE).unwrap_or(DEFAULT_BRIDGE);
        self.bridges.get(name).cloned().map(Attachment::port_of).ok_or_else(|| {
            let what = format!("bridge: found {name:?}, expected the name of a bridge of this domain");
            Failure::new(Errno::ENODEV as i32, what)
        })
    }

    /// Attaches a vif to the bridge of this program that its keys name, or else to a tap of the machine in `dir`.
    ///
    /// # Errors
    /// The tap cannot be created or set up, or another program has an interface of its name.
    pub fn attach_or_create_tap(
        &self,
        dir: &Path,
        device: &Device,
        keys: &Keys,
    ) -> Result<Attachment, Failure> {
        if let Some(bridge) = keys.get(BRIDGE).and_then(|name| self.bridges.get(name)) {
            return Ok(Attachment::port_of(bridge.clone()));
        }
        let name = tap_name(device, keys);
        let attachment = attach_tap(&name, &TapOwner::new(dir, device.front, device.id), keys)?;
        tracing::info!(vif = name, script = keys.get(SCRIPT), "attached to a tap");
        Ok(attachment)
    }
}

/// Names the tap as the kernel would its interface: stock scripts rename that to the value of the key `vifname`. If
/// they have done so already, it is that name.
fn tap_name(device: &Device, keys: &Keys) -> String {
    let wanted = netback::vif_name(device, keys);
    match is_stock(keys.get(SCRIPT)) && !exists(&wanted) {
        true => netback::default_vif_name(device.front, device.id),
        false => wanted,
    }
}

/// Creates the tap `name` of `owner`, or takes over that of an earlier process; returns whether it did that.
fn create_or_take_over(name: &str, owner: &TapOwner, keys: &Keys) -> Result<(Tap, bool), Failure> {
    match Tap::create(name) {
        // Marked before it is made persistent: without a mark no process would ever remove it.
        Ok(tap) => owner.mark(name).map(|()| (tap, false)).map_err(refused),
        Err(NetError::Exists(_)) => {
            // The interface may have been removed since.
            let holder = Holder::of(name).map_err(|e| Failure::in_use_for_now(chain(&e)))?;
            may_take_over(name, &holder, owner, keys)?;
            let tap = Tap::open(name).map_err(|error| match error {
                // The process that uses it may be exiting.
                NetError::Busy(_) => Failure::in_use_for_now(chain(&error)),
                error => refused(error),
            })?;
            if !matches!(holder, Holder::Vif(_)) {
                tracing::warn!(
                    tap = name,
                    "took over a tap without a mark, which an earlier version of xpv created"
                );
            }
            owner.mark(name).map_err(refused)?;
            Ok((tap, true))
        }
        Err(error) => Err(refused(error)),
    }
}

/// Checks that the existing interface `name` is this vif's tap, created by an earlier process.
fn may_take_over(name: &str, holder: &Holder, owner: &TapOwner, keys: &Keys) -> Result<(), Failure> {
    let served = [XenbusState::InitWait, XenbusState::Initialised, XenbusState::Connected];
    let was_served = served.iter().any(|state| keys.get(STATE) == Some(state.as_text()));
    let may_pass = match holder {
        Holder::Vif(left) if left == owner => return Ok(()),
        Holder::UnmarkedTap { persistent: true } if was_served => return Ok(()),
        // The other vif or its process may be about to close.
        Holder::Vif(_) => true,
        _ => false,
    };
    let how = if may_pass { "waiting for its removal" } else { "and not taken over" };
    let what = format!(
        "network interface {name:?} exists already and is {holder}, {how}; `ip link delete {name}` removes it if \
         it is not needed"
    );
    Err(if may_pass { Failure::in_use_for_now(what) } else { Failure::new(Errno::EEXIST as i32, what) })
}

/// Creates a wire with the tap `name` of `owner` as one end, to whose other end the vif is attached.
fn attach_tap(name: &str, owner: &TapOwner, keys: &Keys) -> Result<Attachment, Failure> {
    let (mut tap, is_taken_over) = create_or_take_over(name, owner, keys)?;
    let bridge = keys.get(BRIDGE).unwrap_or(DEFAULT_BRIDGE);
    if is_left_to_others(bridge, exists) {
        tracing::info!(tap = name, bridge, "there is no such bridge: the tap is left to other programs");
    } else if joins_linux_bridge(keys, is_taken_over) && netdev::master(name).is_none() {
        let mtu = keys.opt(MTU).map_err(|e| Failure::new(Errno::EINVAL as i32, chain(&e)))?;
        // As vif-bridge does: a port of another MTU would change the bridge's.
        tap.set_mtu(mtu.map_or_else(|| netdev::mtu(bridge), Ok).map_err(refused)?).map_err(refused)?;
        netdev::join_bridge(name, bridge).map_err(refused)?;
        netdev::set_up(name).map_err(refused)?;
    }
    let bridge = Bridge::start(Config::wire(name)).map_err(refused)?;
    let persistence = tap.persist().map_err(refused)?;
    bridge.attach("tap", Box::new(tap)).map_err(refused)?;
    let cleanup = move || {
        if let Err(error) = persistence.end() {
            tracing::warn!(error = %chain(&error), "failed to remove a vif's tap");
        }
    };
    let cleanup: Box<dyn FnOnce() + Send> = Box::new(cleanup);
    Ok(Attachment { bridge: Arc::new(bridge), limit_mtu: false, lock: Lock::Off, cleanup: Some(cleanup) })
}

/// Whether the tap is added to a Linux bridge here: if no stock script does that, or vif-bridge did it for an earlier
/// tap that no longer exists.
fn joins_linux_bridge(keys: &Keys, is_taken_over: bool) -> bool {
    let script = keys.get(SCRIPT);
    let script_ran = keys.get(HOTPLUG_STATUS) == Some("connected");
    !is_stock(script)
        || !is_taken_over && script_ran && script.is_some_and(|path| path.ends_with("vif-bridge"))
}

/// Whether the vif may have no bridge: xl names the default one where the line has none, as that of a vif whose tap is found by its name, as
/// by systemd-networkd.
fn is_left_to_others(bridge: &str, exists: impl Fn(&str) -> bool) -> bool {
    bridge == DEFAULT_BRIDGE && !exists(bridge)
}

/// Whether a hotplug script is one of Xen's, `vif-*`, which set up an interface that is named as the kernel's.
fn is_stock(script: Option<&str>) -> bool {
    let name = script.and_then(|path| Path::new(path).file_name()).and_then(|name| name.to_str());
    name.is_some_and(|name| name.starts_with("vif-"))
}

fn exists(interface: &str) -> bool {
    netdev::mtu(interface).is_ok()
}

fn refused(error: impl std::error::Error) -> Failure {
    Failure::new(Errno::ENODEV as i32, chain(&error))
}

fn not_to_the_host(bridge: &str, port: &str) -> Error {
    Error::Other(format!("port: found {port:?}, expected a port of {bridge} to the host"))
}

fn attach_host_port(bridge: &Bridge, port: &HostPort) -> Result<()> {
    let failed = |e: &dyn std::error::Error| Error::Other(format!("{}: {}", port.interface, chain(e)));
    let settings = port.options.settings().map_err(|e| failed(&e))?;
    let opened = open(&port.interface).map_err(|e| failed(&e))?;
    bridge.attach_with(&port.interface.to_string(), opened, settings).map_err(|e| failed(&e))
}

fn open(port: &HostInterface) -> Result<Box<dyn Port>, netdev::NetError> {
    match port {
        HostInterface::Tap(name) => {
            if let Ok(holder) = Holder::of(name) {
                // A tap of the command line may be created in advance, so that it remains when this process exits.
                tracing::info!(tap = name, "using the existing interface, which is {holder}");
            }
            let tap = Tap::open(name)?;
            netdev::set_up(tap.name())?;
            Ok(Box::new(tap))
        }
        HostInterface::Packet(name) => {
            netdev::set_up(name)?;
            Ok(Box::new(Packet::open(name)?))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use ring_abi::netif::key::VIFNAME;
    use xenstore::DomId;

    #[test]
    fn stock_scripts_are_recognised_by_name() {
        assert!(is_stock(Some("/etc/xen/scripts/vif-bridge")) && is_stock(Some("vif-nat")));
        assert!(!is_stock(Some("/bin/true")) && !is_stock(Some("/etc/xen/vif-x/nop")) && !is_stock(None));
    }

    #[test]
    fn tap_joins_the_linux_bridge_only_if_no_stock_script_does_it() {
        let stock = Keys::new("/b").with(SCRIPT, "/etc/xen/scripts/vif-bridge");
        let ran = stock.clone().with(HOTPLUG_STATUS, "connected");
        assert!(!joins_linux_bridge(&stock, false), "its script has not run yet");
        assert!(joins_linux_bridge(&ran, false), "its script is not run again");
        assert!(!joins_linux_bridge(&ran, true), "the script set it up");
        assert!(joins_linux_bridge(&Keys::new("/b").with(SCRIPT, "/bin/true"), false));
        assert!(!joins_linux_bridge(&ran.with(SCRIPT, "vif-route"), false));
    }

    #[test]
    fn tap_has_no_bridge_only_where_the_default_one_does_not_exist() {
        assert!(is_left_to_others("xenbr0", |_| false));
        assert!(!is_left_to_others("xenbr0", |_| true));
        assert!(!is_left_to_others("br7", |_| false), "a bridge that somebody has named");
    }

    #[test]
    fn tap_has_the_kernels_name_until_a_stock_script_renames_it() {
        let device = Device::new("vif", DomId(3), 1);
        let keys = Keys::new("/b").with(VIFNAME, "xpv-none");
        assert_eq!(tap_name(&device, &keys), "xpv-none");
        assert_eq!(tap_name(&device, &keys.with(SCRIPT, "vif-bridge")), "vif3.1");
    }

    #[test]
    fn tap_is_taken_over_only_by_its_own_vif() {
        let owner = TapOwner { dir: "/run/xpv".into(), domid: DomId(3), devid: 1 };
        let other_dir = TapOwner { dir: "/run/b".into(), ..owner.clone() };
        let other_vif = TapOwner { domid: DomId(2), ..owner.clone() };
        let unmarked = Holder::UnmarkedTap { persistent: true };
        let keys = |state: XenbusState| Keys::new("/b").with(STATE, state.as_text());
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
            assert_eq!(takes(&unmarked, &keys(state)), Ok(()), "created by a version that did not mark it");
            let attached = Holder::UnmarkedTap { persistent: false };
            assert!(takes(&attached, &keys(state)).is_err(), "not persistent, so another program uses it");
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
    fn unknown_bridge_is_named_in_the_error() {
        let keys = Keys::new("/b").with(BRIDGE, "br7");
        let error = Bridges::start(&[]).unwrap().attach(&keys).err().unwrap();
        assert!(error.what.contains("br7"), "{}", error.what);
    }
}
