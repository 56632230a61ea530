//! A network interface to attach: what xl makes of its text, without what cannot be had here.

use bridge::{Addresses, Flag, Flood, InvalidAddress, InvalidVlans, Lock, Vlans};
use ring_abi::netif::{MTU_DEFAULT, MTU_MAX, MTU_MIN, MTU_RANGE, Mac};

use super::Warnings;
use super::device_nic::{DeviceNic, invalid};
use super::disk::{DRIVER_DOMAIN, is_dom0};
use super::rate::{PacketRate, Rate};
use crate::error::{Origin, Result};

/// A network interface to attach.
///
/// ```
/// use toolstack::config::{VifSpec, Warnings};
/// use toolstack::error::Origin;
///
/// let origin = Origin::argument("VIF");
/// let vif = VifSpec::parse(&origin, &["bridge=br1", "mtu=9000"], &mut Warnings::default()).unwrap();
/// assert_eq!((vif.bridge.as_str(), vif.mtu, vif.mac), ("br1", 9000, None));
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VifSpec {
    /// The interface's MAC address; `None` means that one is to be chosen.
    pub mac: Option<Mac>,
    /// The bridge that the interface is attached to.
    pub bridge: String,
    /// The interface's name in dom0, and the name of a local guest's tap; `None` means `vif<domid>.<devid>`.
    pub vifname: Option<String>,
    /// The limit on what the guest sends.
    pub rate: Option<Rate>,
    /// How many packets it may send.
    pub rate_packets: Option<PacketRate>,
    /// What it is sent.
    pub rate_in: Option<Rate>,
    /// How many packets it is sent.
    pub rate_in_packets: Option<PacketRate>,
    /// Which frames the guest may send by their addresses; `None` means `mac`, or `ip` with addresses, on a bridge of this
    /// program, and `off` on a wire.
    pub lock: Option<Lock>,
    /// The addresses that the guest may send from under `lock=ip`, which is then the default on a bridge of this program.
    pub ip: Addresses,
    /// The VLANs that the guest is in; `None`: untagged frames alone where others are in VLANs.
    pub vlan: Option<Vlans>,
    /// The flags of its port that are given.
    pub flags: Vec<(Flag, bool)>,
    /// The limits that are given of what it may send to many at once; one without a value does not limit.
    pub storm: Vec<(Flood, Option<u32>)>,
    /// The largest payload of a frame, in bytes.
    pub mtu: u32,
    /// The device number in the guest; `None` means the lowest free one.
    pub devid: Option<u32>,
    /// Whether the guest's frontend is to trust the backend.
    pub trusted: bool,
}

/// The default bridge.
pub const DEFAULT_BRIDGE: &str = "xenbr0";

impl VifSpec {
    /// Parses an interface that is written in several texts, each with parameters between commas; nothing gives every default.
    /// Parameters without effect are added to `warnings`.
    ///
    /// # Errors
    /// [`crate::error::Error::Input`] names the parameter, the value found and what is valid.
    pub fn parse(origin: &Origin, texts: &[impl AsRef<str>], warnings: &mut Warnings) -> Result<VifSpec> {
        VifSpec::new(origin, DeviceNic::parse(origin, texts)?, warnings)
    }

    /// Makes an interface of what xl has parsed. Parameters without effect are added to `warnings`.
    ///
    /// # Errors
    /// [`crate::error::Error::Input`] names the parameter that xl supports and this program does not, and what is valid.
    pub fn new(origin: &Origin, nic: DeviceNic, warnings: &mut Warnings) -> Result<VifSpec> {
        refuse_unsupported(origin, &nic)?;
        warn(origin, &nic, warnings);
        if let Some(mac) = nic.mac.filter(|mac| !mac.is_unicast()) {
            let expected = "an address of one interface such as 00:16:3e:01:02:03";
            return Err(invalid(origin, "mac", &mac.to_string(), expected));
        }
        for (name, rate) in [("rate", nic.rate), ("rate-in", nic.rate_in)] {
            if let Some(rate) = rate.filter(|rate| rate.bytes == 0) {
                return Err(invalid(origin, name, &rate.to_string(), "at least one byte in an interval"));
            }
        }
        let mtu = nic.mtu.unwrap_or(MTU_DEFAULT);
        if !(MTU_MIN..=MTU_MAX).contains(&mtu) {
            return Err(invalid(origin, "mtu", &mtu.to_string(), format!("bytes from {MTU_RANGE}")));
        }
        let ip = nic.ip.as_deref().unwrap_or_default();
        let ip: Addresses = ip
            .parse()
            .map_err(|InvalidAddress { found, expected }| invalid(origin, "ip", &found, expected))?;
        let vlan = nic.vlan.as_deref().map(str::trim).filter(|vlan| !vlan.is_empty()).map(str::parse);
        let vlan = vlan
            .transpose()
            .map_err(|InvalidVlans { found, expected }| invalid(origin, "vlan", &found, expected))?;
        let vifname = nic.vifname.filter(|name| !name.is_empty());
        if let Some(name) = vifname.as_deref().filter(|name| !is_interface_name(name)) {
            let expected = "an interface name: 1 to 15 bytes without '/', ':', '%' or blanks";
            return Err(invalid(origin, "vifname", name, expected));
        }
        Ok(VifSpec {
            mac: nic.mac,
            bridge: nic.bridge.filter(|name| !name.is_empty()).unwrap_or_else(|| DEFAULT_BRIDGE.into()),
            vifname,
            rate: nic.rate,
            rate_packets: nic.rate_packets,
            rate_in: nic.rate_in,
            rate_in_packets: nic.rate_in_packets,
            lock: nic.lock,
            ip,
            vlan,
            flags: nic.flags,
            storm: nic.storm,
            mtu,
            devid: nic.devid,
            trusted: nic.trusted.unwrap_or(true),
        })
    }
}

/// Rejects what xl supports and this program does not.
fn refuse_unsupported(origin: &Origin, nic: &DeviceNic) -> Result<()> {
    if let Some(domain) = nic.backend_domain.as_deref().filter(|domain| !is_dom0(domain)) {
        return Err(invalid(origin, "backend", domain, DRIVER_DOMAIN));
    }
    match nic.colo.first() {
        Some((name, value)) => Err(invalid(origin, name, value, "nothing (COLO is not supported)")),
        None => Ok(()),
    }
}

fn warn(origin: &Origin, nic: &DeviceNic, warnings: &mut Warnings) {
    let given = |text: &Option<String>| text.as_deref().is_some_and(|text| !text.is_empty());
    let is_ioemu = nic.kind.as_deref() == Some("ioemu");
    let ignored = [
        ("type=ioemu", is_ioemu, "there are no emulated interfaces, and this is a vif"),
        ("untrusted", nic.trusted == Some(false), "our frontends make no difference"),
        ("script", given(&nic.script), "scripts are not run; dom0 puts the interface into the bridge itself"),
        ("model", given(&nic.model), "there are no emulated interfaces"),
        ("gatewaydev", given(&nic.gatewaydev), "it is for the script vif-route, which is not run"),
        ("accel", nic.accel, "it has had none since Xen 4.2"),
    ];
    for (name, is_given, why) in ignored {
        if is_given {
            warnings.no_effect(origin, &format!("vif: {name}"), why);
        }
    }
}

/// Whether Linux accepts this as an interface's name (`dev_valid_name`), and as it is: it makes a number of `%d`.
pub fn is_interface_name(name: &str) -> bool {
    let bad = |c: char| c.is_ascii_whitespace() || ['/', ':', '%'].contains(&c);
    (1..16).contains(&name.len()) && name != "." && name != ".." && !name.contains(bad)
}

#[cfg(test)]
mod tests;
