//! A bridge of dom0 with its ports to the host, in `host.toml` and on the command line: `xenbr0=packet:eth1,group_fwd_mask=0x4000`.

use bridge::{BridgeSetting, GroupFwdMask, InvalidBridgeSetting};
use serde::Deserialize;

use super::host_port::HostPort;

/// A bridge of dom0.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Eq)]
#[serde(deny_unknown_fields)]
pub struct BridgeConfig {
    /// The name that vifs refer to.
    pub name: String,
    /// The bridge's host ports: `tap:NAME` creates a tap, `packet:NAME` opens an existing interface. Behind it
    /// are settings of the port, as `packet:eth1,vlan=10p/20`.
    #[serde(default)]
    pub ports: Vec<HostPort>,
    /// Whether it is a wire between its only port and the only vif that names it: it passes every frame, where a learning
    /// bridge has a filter.
    #[serde(default)]
    pub wire: bool,
    /// Seconds after which the forwarding database forgets a station that is not seen.
    pub ageing_time: Option<u32>,
    /// Most stations that it learns.
    pub fdb_max_learned: Option<u32>,
    /// The link-local groups 01:80:c2:00:00:0X that are forwarded, with bit X for each.
    pub group_fwd_mask: Option<u16>,
}

/// What a wire's port can be set.
pub const WIRE_SETTINGS: &str = "a port with rates alone, as a wire passes every frame that they admit";

/// What a wire's ports are expected to be.
const WIRE_PORTS: &str = "one port; the vif that names the wire is its other end";

impl BridgeConfig {
    /// Reads `NAME=PORT`: a wire on the command line.
    ///
    /// # Errors
    /// What was found, and what is expected.
    pub fn wire(text: &str) -> Result<BridgeConfig, String> {
        let config = BridgeConfig { wire: true, ..BridgeConfig::read(text)? };
        match config.check() {
            Ok(()) => Ok(config),
            Err(error) => Err(format!("found {text:?}, expected NAME=PORT: {}", error.expected)),
        }
    }

    /// Whether it can be had: a wire has exactly one port, and no settings.
    ///
    /// # Errors
    /// The key, what was found and what is expected.
    pub fn check(&self) -> Result<(), InvalidBridgeSetting> {
        let settings = self.settings()?;
        let invalid = |name, found, expected| Err(InvalidBridgeSetting { name, found, expected });
        match self.wire {
            true if self.ports.len() != 1 => invalid("ports", self.port_names(), WIRE_PORTS),
            true if !settings.is_empty() => {
                invalid("wire", self.to_string(), "a wire without settings, as it has no forwarding database")
            }
            true if !self.ports.iter().all(|port| port.options.are_rates()) => {
                invalid("ports", self.port_names(), WIRE_SETTINGS)
            }
            _ => Ok(()),
        }
    }

    /// The settings that differ from the default.
    ///
    /// # Errors
    /// One has a value that it cannot have.
    pub fn settings(&self) -> Result<Vec<BridgeSetting>, InvalidBridgeSetting> {
        let mask = self.group_fwd_mask.map(GroupFwdMask::new).transpose()?;
        let settings = [
            self.ageing_time.map(BridgeSetting::AgeingTime),
            self.fdb_max_learned.map(BridgeSetting::FdbMaxLearned),
            mask.map(BridgeSetting::GroupFwdMask),
        ];
        let settings: Vec<_> = settings.into_iter().flatten().collect();
        settings.iter().try_for_each(|setting| setting.check())?;
        Ok(settings)
    }

    fn port_names(&self) -> String {
        self.ports.iter().map(HostPort::to_string).collect::<Vec<_>>().join(",")
    }

    /// Reads what [`std::fmt::Display`] writes.
    fn read(text: &str) -> Result<BridgeConfig, String> {
        let (name, parts) = text.split_once('=').unwrap_or((text, ""));
        if name.is_empty() {
            return Err(format!("found {text:?}, expected NAME or NAME=PORT,PORT"));
        }
        let mut config = BridgeConfig { name: name.into(), ..BridgeConfig::default() };
        let mut ports: Vec<String> = Vec::new();
        for part in parts.split(',').filter(|part| !part.is_empty()) {
            match (bridge_setting(part), ports.last_mut()) {
                (Some(setting), _) => config.set(setting?),
                (None, Some(port)) if part.contains('=') => *port = format!("{port},{part}"),
                (None, _) => ports.push(part.to_owned()),
            }
        }
        config.ports = ports.iter().map(|port| port.parse()).collect::<Result<_, _>>()?;
        Ok(config)
    }

    fn set(&mut self, setting: BridgeSetting) {
        match setting {
            BridgeSetting::AgeingTime(seconds) => self.ageing_time = Some(seconds),
            BridgeSetting::FdbMaxLearned(entries) => self.fdb_max_learned = Some(entries),
            BridgeSetting::GroupFwdMask(mask) => self.group_fwd_mask = Some(mask.bits()),
        }
    }
}

/// The names of a bridge's settings.
pub const BRIDGE_SETTINGS: [&str; 3] = ["ageing_time", "fdb_max_learned", "group_fwd_mask"];

/// Reads `KEY=VALUE` as one of a bridge's settings; `None` if it is none of [`BRIDGE_SETTINGS`].
pub fn bridge_setting(text: &str) -> Option<Result<BridgeSetting, String>> {
    let (key, value) = text.split_once('=')?;
    let setting = match key {
        "ageing_time" => number(text, value).map(BridgeSetting::AgeingTime),
        "fdb_max_learned" => number(text, value).map(BridgeSetting::FdbMaxLearned),
        "group_fwd_mask" => number(text, value).and_then(|bits| {
            GroupFwdMask::new(bits).map(BridgeSetting::GroupFwdMask).map_err(|e| e.to_string())
        }),
        _ => return None,
    };
    Some(setting.and_then(|setting| setting.check().map(|()| setting).map_err(|e| e.to_string())))
}

/// Reads a number, which may be hexadecimal.
fn number<T: TryFrom<u32>>(part: &str, value: &str) -> Result<T, String> {
    let read = match value.strip_prefix("0x") {
        Some(digits) => u32::from_str_radix(digits, 16),
        None => value.parse(),
    };
    let read = read.ok().and_then(|number| T::try_from(number).ok());
    read.ok_or_else(|| format!("found {part:?}, expected a number such as 300 or 0x4000"))
}

/// `NAME` or `NAME=PORT,PORT`, with settings among the ports: a bridge on the command line.
impl std::str::FromStr for BridgeConfig {
    type Err = String;

    fn from_str(text: &str) -> Result<BridgeConfig, String> {
        let config = BridgeConfig::read(text)?;
        config.check().map_err(|error| error.to_string())?;
        Ok(config)
    }
}

impl std::fmt::Display for BridgeConfig {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let ports = self.ports.iter().map(HostPort::to_string);
        let settings = [
            self.ageing_time.map(|seconds| format!("ageing_time={seconds}")),
            self.fdb_max_learned.map(|entries| format!("fdb_max_learned={entries}")),
            self.group_fwd_mask.map(|mask| format!("group_fwd_mask={mask:#x}")),
        ];
        let parts: Vec<_> = ports.chain(settings.into_iter().flatten()).collect();
        let equals = if parts.is_empty() { "" } else { "=" };
        write!(f, "{}{equals}{}", self.name, parts.join(","))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn settings_behind_a_port_are_its_own_unless_they_are_the_bridges() {
        let text =
            "br1=tap:host0,packet:eth1,isolated=on,rate=8Mb/s@20ms,vlan=10p/20,packet:eth2,ageing_time=60";
        let config: BridgeConfig = text.parse().unwrap();
        assert_eq!(config.to_string(), text);
        assert_eq!(config.ports[1].options.settings().unwrap().vlans.to_string(), "10p/20");
        assert_eq!((config.ports[2].to_string().as_str(), config.ageing_time), ("packet:eth2", Some(60)));
    }

    #[test]
    fn bridge_on_the_command_line_has_ports_and_settings() {
        let config: BridgeConfig =
            "br1=tap:t0,group_fwd_mask=0x4008,packet:eth1,ageing_time=0".parse().unwrap();
        assert_eq!(
            (config.ports.len(), config.group_fwd_mask, config.ageing_time),
            (2, Some(0x4008), Some(0))
        );
        for (text, expected) in [
            ("br1=group_fwd_mask=7", "group_fwd_mask: found 0x7, expected a mask without the bits 0x7"),
            ("br1=group_fwd_mask=0x10000", "found \"group_fwd_mask=0x10000\", expected a number such as"),
            ("br1=ageing_time=5s", "found \"ageing_time=5s\", expected a number"),
            ("br1=fdb_max_learned=0", "fdb_max_learned: found 0, expected a number of entries"),
            ("br1=stp=1", "found \"stp=1\", expected tap:NAME or packet:NAME"),
            ("=tap:a", "expected NAME or NAME=PORT,PORT"),
        ] {
            let error = text.parse::<BridgeConfig>().unwrap_err();
            assert!(error.contains(expected), "{text}: {error}");
        }
        let error = BridgeConfig::wire("w=tap:a,vlan=10").unwrap_err();
        assert!(error.contains("a port with rates alone"), "{error}");
        assert!(BridgeConfig::wire("w=tap:a,rate=8Mb/s").is_ok());
        let error = BridgeConfig::wire("w=tap:a,ageing_time=5").unwrap_err();
        assert!(error.contains("a wire without settings"), "{error}");
    }
}
