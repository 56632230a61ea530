//! A port that attaches an interface of the host to a bridge, and what is set for it: `packet:eth1,vlan=10p/20,isolated=on`. Settings have the names
//! that those of a vif's line have.

use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;

use bridge::{PortSettings, StormLimits, Vlans};
use netback::handshake;
use ring_abi::netif::key;
use serde::Deserialize;
use xenbus::{KeyError, Keys};

use super::vif::is_interface_name;
use super::vif_setting::{self, SETTINGS, Setting};
use crate::error::{Origin, Result};

/// A port to the host.
///
/// ```
/// let port: toolstack::config::host_port::HostPort = "packet:eth1,vlan=10p/20".parse().unwrap();
/// assert_eq!((port.interface.name(), port.to_string().as_str()), ("eth1", "packet:eth1,vlan=10p/20"));
/// ```
#[derive(Clone, Debug, Deserialize, PartialEq, Eq)]
#[serde(try_from = "String")]
pub struct HostPort {
    /// The interface.
    pub interface: HostInterface,
    /// What is set for it.
    pub options: PortOptions,
}

/// An interface of the host, and how it is opened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum HostInterface {
    /// A tap of this name, created by dom0 and removed when dom0 exits.
    Tap(String),
    /// An existing interface, opened by a packet socket.
    Packet(String),
}

/// What is set for a port of the host; nothing gives the default.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PortOptions(BTreeMap<&'static str, PortOption>);

/// A value, as it was given and as a vif's backend has it in the store.
#[derive(Clone, Debug, PartialEq, Eq)]
struct PortOption {
    given: String,
    stored: String,
}

/// What a guest's interface alone has: the host sends from any address.
const GUESTS_ALONE: [&str; 2] = [key::LOCK, key::IP];

/// What a wire has too.
const RATES: [&str; 4] = [key::RATE, key::RATE_PACKETS, key::RATE_IN, key::RATE_IN_PACKETS];

impl HostInterface {
    /// The interface's name.
    pub fn name(&self) -> &str {
        match self {
            HostInterface::Tap(name) | HostInterface::Packet(name) => name,
        }
    }
}

impl PortOptions {
    /// Sets one as `KEY=VALUE`; nothing behind the `=` gives the default.
    ///
    /// # Errors
    /// [`crate::error::Error::Input`] names the key, the value found and what is valid.
    pub fn set(&mut self, origin: &Origin, text: &str) -> Result<()> {
        let Setting { key, value } = vif_setting::setting(origin, text)?;
        if GUESTS_ALONE.contains(&key) {
            let keys = SETTINGS.into_iter().filter(|key| !GUESTS_ALONE.contains(key)).collect::<Vec<_>>();
            let expected = format!("one of {}: the host sends from any address", keys.join(", "));
            return Err(origin.invalid("port", text, expected));
        }
        match value {
            Some(stored) => {
                let given = text.split_once('=').map_or("", |(_, value)| value).to_owned();
                self.0.insert(key, PortOption { given, stored });
            }
            None => drop(self.0.remove(key)),
        }
        Ok(())
    }

    /// Each that there can be as `KEY=VALUE`, so that [`PortOptions::set`] with all of them makes other options these.
    pub fn all_with_defaults(&self) -> Vec<String> {
        let keys = SETTINGS.into_iter().filter(|key| !GUESTS_ALONE.contains(key));
        let given = |key| self.0.get(key).map_or("", |option| option.given.as_str());
        keys.map(|key| format!("{key}={}", given(key))).collect()
    }

    /// Whether they are rates alone, which a wire has too.
    pub fn are_rates(&self) -> bool {
        self.0.keys().all(|key| RATES.contains(key))
    }

    /// The settings of its port.
    ///
    /// # Errors
    /// Values that [`PortOptions::set`] takes and a backend does not: none are known.
    pub fn settings(&self) -> Result<PortSettings, KeyError> {
        let keys = self.0.iter().fold(Keys::empty(), |keys, (key, option)| keys.with(*key, &option.stored));
        let vlans = match keys.get(key::VLAN) {
            Some(_) => handshake::vlans(&keys)?,
            None => Vlans::trunk(),
        };
        Ok(PortSettings {
            vlans,
            flags: handshake::flags(&keys)?,
            rate: handshake::rate(&keys)?,
            rate_in: handshake::rate_in(&keys)?,
            storm: handshake::storm(&keys, StormLimits::default())?,
            ..PortSettings::default()
        })
    }
}

impl TryFrom<String> for HostPort {
    type Error = String;

    fn try_from(text: String) -> Result<HostPort, String> {
        text.parse()
    }
}

impl FromStr for HostPort {
    type Err = String;

    fn from_str(text: &str) -> Result<HostPort, String> {
        let (interface, rest) = text.split_once(',').unwrap_or((text, ""));
        let interface = match interface.split_once(':') {
            Some(("tap", name)) if is_interface_name(name) => HostInterface::Tap(name.into()),
            Some(("packet", name)) if is_interface_name(name) => HostInterface::Packet(name.into()),
            _ => return Err(format!("found {interface:?}, expected tap:NAME or packet:NAME")),
        };
        let mut options = PortOptions::default();
        for option in rest.split(',').filter(|option| !option.is_empty()) {
            options.set(&Origin::setting(&interface.to_string()), option).map_err(|e| e.to_string())?;
        }
        Ok(HostPort { interface, options })
    }
}

impl fmt::Display for HostInterface {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            HostInterface::Tap(name) => write!(f, "tap:{name}"),
            HostInterface::Packet(name) => write!(f, "packet:{name}"),
        }
    }
}

impl fmt::Display for HostPort {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.interface)?;
        self.options.0.iter().try_for_each(|(key, option)| write!(f, ",{key}={}", option.given))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use bridge::Flag;

    #[test]
    fn port_has_the_settings_behind_it() {
        let port: HostPort = "packet:eth1,isolated=on,vlan=10p/20".parse().unwrap();
        let settings = port.options.settings().unwrap();
        assert!(settings.flags.has(Flag::Isolated));
        assert_eq!(settings.vlans.to_string(), "10p/20");
        let port: HostPort = "tap:host0".parse().unwrap();
        assert_eq!(port.options.settings().unwrap(), PortSettings::default());
    }

    #[test]
    fn setting_is_taken_back_by_nothing() {
        let origin = Origin::argument("KEY=VALUE");
        let mut options = PortOptions::default();
        options.set(&origin, "vlan=10").unwrap();
        options.set(&origin, "vlan=").unwrap();
        assert_eq!(options, PortOptions::default());
        options.set(&origin, "vlan=10").unwrap();
        let port: HostPort = "tap:host0,isolated=on".parse().unwrap();
        port.options.all_with_defaults().iter().for_each(|text| options.set(&origin, text).unwrap());
        assert_eq!(options, port.options);
    }

    #[test]
    fn invalid_port_is_refused_with_what_was_found_and_expected() {
        for (text, expected) in [
            ("eth1", "found \"eth1\", expected tap:NAME or packet:NAME"),
            ("isolated=on", "found \"isolated=on\", expected tap:NAME"),
            ("packet:eth1,isolated=yes", "packet:eth1: vif: isolated: found \"yes\", expected on or off"),
            ("packet:eth1,lock=mac", "packet:eth1: port: found \"lock=mac\", expected one of rate, "),
            ("packet:eth1,mac=00:16:3e:00:00:01", "packet:eth1: vif: found \"mac=00:16:3e:00:00:01\""),
        ] {
            let error = text.parse::<HostPort>().unwrap_err();
            assert!(error.starts_with(expected), "{text}: {error}");
        }
    }
}
