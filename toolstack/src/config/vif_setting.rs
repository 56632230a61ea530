//! What a guest may send by an interface, and is sent, as `xpv network-set` and a policy write it: `rate=10Mb/s`, `lock=mac`.

use bridge::{Flags, StormLimits};
use ring_abi::netif::key;

use super::{DeviceNic, VifSpec, Warnings};
use crate::error::{Origin, Result};

/// A key of the backend's, and its value; none is to be removed.
#[derive(Debug, PartialEq, Eq)]
pub struct Setting {
    /// The key.
    pub key: &'static str,
    /// The value as the store has it.
    pub value: Option<String>,
}

/// The keys that a setting can be of.
pub const SETTINGS: [&str; 18] = [
    key::RATE,
    key::RATE_PACKETS,
    key::RATE_IN,
    key::RATE_IN_PACKETS,
    key::LOCK,
    key::IP,
    key::VLAN,
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

/// Reads a setting as the line of an interface has it.
///
/// # Errors
/// [`crate::error::Error::Input`] names the key, the value found and what is valid.
pub fn setting(origin: &Origin, text: &str) -> Result<Setting> {
    let expected = || format!("KEY=VALUE with KEY one of {}", SETTINGS.join(", "));
    let name = text.split_once('=').map(|(name, _)| name.trim());
    let key = SETTINGS.into_iter().find(|key| name == Some(*key));
    let key = key.ok_or_else(|| origin.invalid("vif", text, expected()))?;
    let nic = DeviceNic::parse(origin, &[text])?;
    let vif = VifSpec::new(origin, nic, &mut Warnings::default())?;
    let value = match key {
        key::RATE => vif.rate.map(|rate| rate.to_string()),
        key::RATE_PACKETS => vif.rate_packets.map(|rate| rate.to_string()),
        key::RATE_IN => vif.rate_in.map(|rate| rate.to_string()),
        key::RATE_IN_PACKETS => vif.rate_in_packets.map(|rate| rate.to_string()),
        key::LOCK => vif.lock.map(|lock| lock.to_string()),
        key::IP => Some(vif.ip.to_string()).filter(|ip| !ip.is_empty()),
        key::VLAN => vif.vlan.map(|vlan| vlan.to_string()),
        _ => {
            let flag = vif.flags.first().map(|(_, on)| Flags::text(*on).to_owned());
            flag.or_else(|| vif.storm.first().map(|(_, limit)| StormLimits::text(*limit)))
        }
    };
    // A comma separates parameters, of which there is one here.
    if text.contains(',') {
        return Err(origin.invalid("vif", text, expected()));
    }
    Ok(Setting { key, value })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn setting(text: &str) -> Result<Setting> {
        super::setting(&Origin::argument("KEY=VALUE"), text)
    }

    #[test]
    fn settings_are_read_as_the_interfaces_line_has_them() {
        let of = |key, value: &str| Setting { key, value: Some(value.to_owned()) };
        assert_eq!(setting("lock=off").unwrap(), of("lock", "off"));
        assert_eq!(setting("rate=8Mb/s").unwrap(), of("rate", "50000,50000"));
        assert_eq!(setting("rate=").unwrap(), Setting { key: "rate", value: None });
        assert_eq!(setting("rate-packets=1000p/s").unwrap(), of("rate-packets", "50,50000"));
        assert_eq!(setting("rate-in=8Mb/s@20ms").unwrap(), of("rate-in", "20000,20000"));
        assert_eq!(setting("rate-in-packets=7p/s").unwrap(), of("rate-in-packets", "1,142857"));
        assert_eq!(setting("rate-in=").unwrap(), Setting { key: "rate-in", value: None });
        assert_eq!(setting("ip= 10.0.0.5  fd00::/64").unwrap(), of("ip", "10.0.0.5 fd00::/64"));
        assert!(SETTINGS.ends_with(&[&Flags::NAMES[..], &StormLimits::NAMES].concat()));
        assert_eq!(setting("storm_broadcast=100").unwrap(), of("storm_broadcast", "100"));
        assert_eq!(setting("storm_unknown_unicast=0").unwrap(), of("storm_unknown_unicast", "none"));
        assert_eq!(setting("storm_multicast=").unwrap(), Setting { key: "storm_multicast", value: None });
        assert_eq!(setting("isolated=on").unwrap(), of("isolated", "on"));
        assert_eq!(setting("mcast_flood=").unwrap(), Setting { key: "mcast_flood", value: None });
        assert_eq!(setting("vlan=10p/20").unwrap(), of("vlan", "10p/20"));
        assert_eq!(setting("vlan=").unwrap(), Setting { key: "vlan", value: None });
        assert_eq!(setting("ip=").unwrap(), Setting { key: "ip", value: None });
        assert_eq!(setting("lock=").unwrap(), Setting { key: "lock", value: None });
    }

    #[test]
    fn bad_setting_is_rejected_with_what_was_found_and_expected() {
        for (text, expected) in [
            ("lock=Mac", "found \"Mac\", expected off, mac, ip or disabled"),
            (
                "mac=00:16:3e:00:00:01",
                "expected KEY=VALUE with KEY one of rate, rate-packets, rate-in, rate-in-packets, lock, ip, vlan, isolated",
            ),
            ("hairpin=yes", "vif: hairpin: found \"yes\", expected on or off"),
            (
                "storm_broadcast=5/s",
                "vif: storm_broadcast: found \"5/s\", expected a number of frames a second, or none",
            ),
            ("vlan=4095", "vif: vlan: found \"4095\", expected a VLAN from 1 to 4094"),
            ("ip=10.0.0.5/33", "vif: ip: found \"10.0.0.5/33\", expected a prefix length"),
            ("lock", "expected KEY=VALUE"),
            ("lock=off,mtu=9000", "expected KEY=VALUE"),
            ("rate=0", "rate"),
            ("rate=1000p/s", "vif: rate: found \"1000p/s\", expected a rate such as 10Mb/s"),
            ("rate-packets=10Mb/s", "expected packets such as 1000p/s"),
            ("rate-in=7b/s@1us", "vif: rate-in: found \"0,1\", expected at least one byte"),
        ] {
            let error = setting(text).unwrap_err().to_string();
            assert!(error.contains(expected), "{text}: {error}");
        }
    }
}
