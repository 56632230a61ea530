//! A network interface as xl parses it: `mac=00:16:3e:01:02:03,bridge=xenbr0,rate=1MB/s`. What xl accepts is accepted, whether
//! it can be attached here or not.
//!
//! Source: xl-network-configuration(5), and what `xl -N network-attach` of Xen 4.17 prints.

use std::str::FromStr;

use bridge::{Flag, Flags, Flood, Lock, StormLimits};
use ring_abi::netif::Mac;
use serde::ser::SerializeMap;
use serde::{Serialize, Serializer};

use super::Warnings;
use super::rate::{self, PacketRate, Rate};
use crate::error::{Error, Origin, Result};

/// An interface in the words of xl. `None` is absent.
///
/// ```
/// use toolstack::config::{DeviceNic, json};
/// use toolstack::error::Origin;
///
/// let nic = DeviceNic::parse(&Origin::argument("VIF"), &["mac=0:16:3e:1:2:3", "untrusted"]).unwrap();
/// let text = "{\n    \"mac\": \"00:16:3e:01:02:03\",\n    \"trusted\": \"False\"\n}\n";
/// assert_eq!(json::to_string(&nic).unwrap(), text);
/// ```
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[allow(missing_docs)] // each is documented by xl-network-configuration(5)
pub struct DeviceNic {
    pub backend_domain: Option<String>,
    pub devid: Option<u32>,
    pub mtu: Option<u32>,
    pub vlan: Option<String>,
    pub model: Option<String>,
    pub mac: Option<Mac>,
    pub ip: Option<String>,
    pub bridge: Option<String>,
    pub vifname: Option<String>,
    pub script: Option<String>,
    /// The parameter `type`: `vif` or `ioemu`.
    pub kind: Option<String>,
    pub rate: Option<Rate>,
    pub gatewaydev: Option<String>,
    /// Parameters of COLO, as libxl names them.
    pub colo: Vec<(&'static str, String)>,
    pub trusted: Option<bool>,
    /// `rate-packets`, which is this program's and not xl's, as the next two.
    pub rate_packets: Option<PacketRate>,
    pub rate_in: Option<Rate>,
    pub rate_in_packets: Option<PacketRate>,
    /// `lock`, which is this program's and not xl's.
    pub lock: Option<Lock>,
    /// Flags by bridge(8)'s names, which are this program's and not xl's.
    pub flags: Vec<(Flag, bool)>,
    /// Limits of what is sent to many at once, which are this program's and not xl's; one without a value does not limit.
    pub storm: Vec<(Flood, Option<u32>)>,
    /// `accel`, which has had no effect since Xen 4.2.
    pub accel: bool,
}

/// libxl's name of `forwarddev`.
const FORWARDDEV: &str = "coloft_forwarddev";
/// COLO's parameters, in libxl's order.
const COLO: &str = "\
 coloft_forwarddev sock_mirror_id sock_mirror_ip sock_mirror_port sock_compare_pri_in_id sock_compare_pri_in_ip \
 sock_compare_pri_in_port sock_compare_sec_in_id sock_compare_sec_in_ip sock_compare_sec_in_port \
 sock_compare_notify_id sock_compare_notify_ip sock_compare_notify_port sock_redirector0_id \
 sock_redirector0_ip sock_redirector0_port sock_redirector1_id sock_redirector1_ip sock_redirector1_port \
 sock_redirector2_id sock_redirector2_ip sock_redirector2_port filter_mirror_queue filter_mirror_outdev \
 filter_redirector0_queue filter_redirector0_indev filter_redirector0_outdev filter_redirector1_queue \
 filter_redirector1_indev filter_redirector1_outdev compare_pri_in compare_sec_in compare_out \
 compare_notify_dev sock_sec_redirector0_id sock_sec_redirector0_ip sock_sec_redirector0_port \
 sock_sec_redirector1_id sock_sec_redirector1_ip sock_sec_redirector1_port filter_sec_redirector0_queue \
 filter_sec_redirector0_indev filter_sec_redirector0_outdev filter_sec_redirector1_queue \
 filter_sec_redirector1_indev filter_sec_redirector1_outdev filter_sec_rewriter0_queue checkpoint_host \
 checkpoint_port";

/// All parameters but COLO's.
pub(super) const KNOWN: &[&str] = &[
    "mac",
    "bridge",
    "vifname",
    "rate",
    "mtu",
    "devid",
    "ip",
    "type",
    "script",
    "backend",
    "model",
    "gatewaydev",
    "netdev",
    "vlan",
    "accel",
    "forwarddev",
    "trusted",
    "untrusted",
    "rate-packets",
    "rate-in",
    "rate-in-packets",
    "lock",
    "isolated",
    "learning",
    "flood",
    "mcast_flood",
    "bcast_flood",
    "hairpin",
    "guard",
    "locked",
    "storm_broadcast",
    "storm_multicast",
    "storm_unknown_unicast",
];

impl DeviceNic {
    /// Parses an interface that is written in several texts, each with parameters between commas.
    ///
    /// # Errors
    /// [`Error::Input`] names the parameter, the value found and what is valid.
    pub fn parse(origin: &Origin, texts: &[impl AsRef<str>]) -> Result<DeviceNic> {
        let mut nic = DeviceNic::default();
        for piece in texts.iter().flat_map(|text| pieces(text.as_ref())) {
            if !nic.parse_piece(origin, piece)? {
                let expected =
                    format!("one of trusted, untrusted, or KEY=VALUE with KEY one of {}", KNOWN.join(", "));
                return Err(origin.invalid("vif", piece, expected));
            }
        }
        Ok(nic)
    }

    /// Parses an interface of an xl.cfg, where xl ignores what it does not know: that is added to `warnings`.
    ///
    /// # Errors
    /// [`Error::Input`] names the parameter, the value found and what is valid.
    pub fn parse_in_cfg(origin: &Origin, text: &str, warnings: &mut Warnings) -> Result<DeviceNic> {
        let mut nic = DeviceNic::default();
        for piece in pieces(text) {
            if !nic.parse_piece(origin, piece)? {
                let name = piece.split('=').next().unwrap_or_default();
                warnings.unknown(origin, &format!("vif: {piece}"), super::known_keys::closest(name, KNOWN));
            }
        }
        Ok(nic)
    }

    /// Stores one parameter; the last one of a name holds. Returns `false` if it is unknown.
    fn parse_piece(&mut self, origin: &Origin, piece: &str) -> Result<bool> {
        let Some((name, value)) = piece.split_once('=') else {
            match piece {
                "trusted" => self.trusted = Some(true),
                "untrusted" => self.trusted = Some(false),
                _ => return Ok(false),
            }
            return Ok(true);
        };
        let text = || Some(value.to_owned());
        match name {
            "backend" => self.backend_domain = text(),
            "vlan" => self.vlan = text(),
            "model" => self.model = text(),
            "ip" => self.ip = text(),
            "bridge" => self.bridge = text(),
            "vifname" => self.vifname = text(),
            "script" => self.script = text(),
            "gatewaydev" | "netdev" => self.gatewaydev = text(),
            "accel" => self.accel = true,
            "devid" => self.devid = number(origin, name, value, "a number from 0 on")?,
            "mtu" => self.mtu = number(origin, name, value, "a number of bytes")?,
            "rate" => self.rate = number(origin, name, value, rate::EXPECTED)?,
            "rate-in" => self.rate_in = number(origin, name, value, rate::EXPECTED)?,
            "rate-packets" => self.rate_packets = number(origin, name, value, rate::PACKETS_EXPECTED)?,
            "rate-in-packets" => self.rate_in_packets = number(origin, name, value, rate::PACKETS_EXPECTED)?,
            "lock" => self.lock = number(origin, name, value, Lock::EXPECTED)?,
            "mac" => self.mac = mac(origin, value)?,
            "type" if ["vif", "ioemu"].contains(&value) => self.kind = text(),
            "type" => return Err(invalid(origin, name, value, "vif or ioemu")),
            "forwarddev" => self.set_colo(FORWARDDEV, value),
            _ => {
                let flag = Flag::ALL.into_iter().find(|flag| flag.name() == name);
                let flood = Flood::ALL.into_iter().find(|flood| flood.limit_name() == name);
                match (flag, flood) {
                    (Some(flag), _) => self.set_flag(origin, flag, value)?,
                    (_, Some(flood)) => self.set_storm(origin, flood, value)?,
                    _ => return Ok(self.parse_colo(name, value)),
                }
            }
        }
        Ok(true)
    }

    fn set_flag(&mut self, origin: &Origin, flag: Flag, value: &str) -> Result<()> {
        self.flags.retain(|(earlier, _)| *earlier != flag);
        if !value.is_empty() {
            let on =
                Flags::parse(value).ok_or_else(|| invalid(origin, flag.name(), value, Flags::EXPECTED))?;
            self.flags.push((flag, on));
        }
        Ok(())
    }

    fn set_storm(&mut self, origin: &Origin, flood: Flood, value: &str) -> Result<()> {
        self.storm.retain(|(earlier, _)| *earlier != flood);
        if !value.is_empty() {
            let limit = StormLimits::parse(value)
                .ok_or_else(|| invalid(origin, flood.limit_name(), value, StormLimits::EXPECTED))?;
            self.storm.push((flood, limit));
        }
        Ok(())
    }

    fn parse_colo(&mut self, name: &str, value: &str) -> bool {
        let mut all = COLO.split_ascii_whitespace();
        let known = all.find(|known| name.strip_prefix("colo_") == Some(known));
        known.is_some_and(|known| {
            self.set_colo(known, value);
            true
        })
    }

    fn set_colo(&mut self, name: &'static str, value: &str) {
        self.colo.retain(|(earlier, _)| *earlier != name);
        self.colo.push((name, value.to_owned()));
    }
}

/// The parameters of a text; blanks around each belong to none.
fn pieces(text: &str) -> impl Iterator<Item = &str> {
    text.split(',').map(str::trim).filter(|piece| !piece.is_empty())
}

/// Parses a value; an empty one is absent.
fn number<T: FromStr>(origin: &Origin, name: &str, value: &str, expected: &str) -> Result<Option<T>> {
    if value.is_empty() {
        return Ok(None);
    }
    value.parse().map(Some).map_err(|_| invalid(origin, name, value, expected))
}

/// Parses six bytes, of one or two digits each as in xl.
fn mac(origin: &Origin, value: &str) -> Result<Option<Mac>> {
    if value.is_empty() {
        return Ok(None);
    }
    let byte = |text: &str| {
        let is_byte = (1..=2).contains(&text.len()) && text.bytes().all(|b| b.is_ascii_hexdigit());
        is_byte.then(|| u8::from_str_radix(text, 16).ok()).flatten()
    };
    let bytes: Option<Vec<u8>> = value.split([':', '-']).map(byte).collect();
    let bytes = bytes.and_then(|bytes| <[u8; 6]>::try_from(bytes).ok());
    bytes
        .map(|bytes| Some(Mac(bytes)))
        .ok_or_else(|| invalid(origin, "mac", value, "an address of one interface such as 00:16:3e:01:02:03"))
}

pub(super) fn invalid(origin: &Origin, name: &str, found: &str, expected: impl Into<String>) -> Error {
    origin.invalid(&format!("vif: {name}"), found, expected)
}

/// The members of a `libxl_device_nic` that are not the default.
impl Serialize for DeviceNic {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(None)?;
        let text = |map: &mut S::SerializeMap, name: &str, value: &Option<String>| match value {
            Some(value) => map.serialize_entry(name, value),
            None => Ok(()),
        };
        text(&mut map, "backend_domname", &self.backend_domain)?;
        self.devid.map_or(Ok(()), |devid| map.serialize_entry("devid", &devid))?;
        self.mtu.map_or(Ok(()), |mtu| map.serialize_entry("mtu", &mtu))?;
        text(&mut map, "vlan", &self.vlan)?;
        text(&mut map, "model", &self.model)?;
        text(&mut map, "mac", &self.mac.map(|mac| mac.to_string()))?;
        text(&mut map, "ip", &self.ip)?;
        text(&mut map, "bridge", &self.bridge)?;
        text(&mut map, "ifname", &self.vifname)?;
        text(&mut map, "script", &self.script)?;
        let kind = self.kind.as_deref().map(|kind| if kind == "ioemu" { "vif_ioemu" } else { "vif" });
        text(&mut map, "nictype", &kind.map(str::to_owned))?;
        if let Some(rate) = self.rate {
            if rate.bytes > 0 {
                map.serialize_entry("rate_bytes_per_interval", &rate.bytes)?;
            }
            map.serialize_entry("rate_interval_usecs", &rate.interval)?;
        }
        text(&mut map, "gatewaydev", &self.gatewaydev)?;
        for known in COLO.split_ascii_whitespace() {
            let prefix = if known == FORWARDDEV { "" } else { "colo_" };
            for (_, value) in self.colo.iter().filter(|(name, _)| *name == known) {
                map.serialize_entry(&format!("{prefix}{known}"), value)?;
            }
        }
        let trusted = self.trusted.map(|trusted| if trusted { "True" } else { "False" });
        text(&mut map, "trusted", &trusted.map(str::to_owned))?;
        map.end()
    }
}
