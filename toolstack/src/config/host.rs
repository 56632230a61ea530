//! A host's configuration from `host.toml`: what `xpv up` starts and keeps running.

use std::path::{Path, PathBuf};

use serde::Deserialize;

use super::cache_size::CacheSize;
use super::host_bridge::BridgeConfig;
use super::rx::RxMethod;
use super::vif::DEFAULT_BRIDGE;
use crate::error::{Error, Origin, Result};

/// A host's configuration. Unknown keys are errors.
///
/// ```toml
/// dir = "/run/xpv"
/// images = ["/srv"]      # images below these directories alone are opened; any where there is none
/// base_cache = "256M"    # memory for what guests read of base images; "0" for none (docs/disks.md)
/// policy = "policy.toml" # limits of disks and interfaces (docs/limits.md)
///
/// [[bridges]]
/// name = "xenbr0"
/// ports = ["tap:host0", "packet:eth1,vlan=10p/20"]
/// group_fwd_mask = 0x4000  # forwards LLDP (docs/networks.md)
///
/// [[bridges]]
/// name = "uplink"
/// ports = ["packet:eth2"]
/// wire = true            # between this port and the one vif that names it, instead of a learning bridge
///
/// [[guests]]
/// cfg = "web.cfg"        # relative to this file
/// netns = "web"          # where its interfaces are put
/// rx = "copy"            # how they receive: copy (the default), flip or auto
///
/// [supervise]
/// dom0 = true            # start dom0 again when it exits by itself (the default)
/// guests = true          # create guests of this file again when they exit (the default is not to)
/// ```
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Eq)]
#[serde(deny_unknown_fields)]
pub struct HostConfig {
    /// The machine's directory; the program's default when absent.
    pub dir: Option<PathBuf>,
    /// The directories below which images are opened; anywhere if there is none.
    #[serde(default)]
    pub images: Vec<PathBuf>,
    /// Memory for what guests read of base images (`xpv dom0 --base-cache`); dom0's default when absent.
    pub base_cache: Option<CacheSize>,
    /// The policy that gives limits to disks and interfaces (`xpv dom0 --policy`).
    pub policy: Option<PathBuf>,
    /// The bridges; one `xenbr0` without ports when absent.
    #[serde(default = "default_bridges")]
    pub bridges: Vec<BridgeConfig>,
    /// The guests.
    #[serde(default)]
    pub guests: Vec<GuestEntry>,
    /// What is restarted after a failure.
    #[serde(default)]
    pub supervise: Supervise,
}

/// A guest to create.
#[derive(Clone, Debug, Deserialize, PartialEq, Eq)]
#[serde(deny_unknown_fields)]
pub struct GuestEntry {
    /// The guest's `xl.cfg`.
    pub cfg: PathBuf,
    /// The network namespace of the guest's interfaces: a name, a process id or a path.
    pub netns: Option<String>,
    /// How the guest's interfaces receive.
    #[serde(default)]
    pub rx: RxMethod,
}

/// What is restarted when it exits by itself.
#[derive(Clone, Debug, Deserialize, PartialEq, Eq)]
#[serde(deny_unknown_fields)]
pub struct Supervise {
    /// Restart dom0.
    #[serde(default = "yes")]
    pub dom0: bool,
    /// Restart the guests of this file.
    #[serde(default)]
    pub guests: bool,
}

impl Default for Supervise {
    fn default() -> Supervise {
        Supervise { dom0: true, guests: false }
    }
}

fn yes() -> bool {
    true
}

fn default_bridges() -> Vec<BridgeConfig> {
    vec![BridgeConfig { name: DEFAULT_BRIDGE.into(), ..BridgeConfig::default() }]
}

impl HostConfig {
    /// Reads and parses a file; relative paths in it are resolved against the file's directory.
    ///
    /// # Errors
    /// [`Error::File`] if it cannot be read; errors of [`HostConfig::parse`].
    pub fn read(path: &Path) -> Result<HostConfig> {
        let text = std::fs::read_to_string(path)
            .map_err(|e| Error::file(path, "reading the host's description", e))?;
        let mut host = HostConfig::parse(&Origin::file(path), &text)?;
        let directory = path.parent().unwrap_or(Path::new(""));
        for guest in &mut host.guests {
            guest.cfg = directory.join(&guest.cfg);
        }
        for path in host.dir.iter_mut().chain(&mut host.images).chain(&mut host.policy) {
            *path = directory.join(&*path);
        }
        Ok(host)
    }

    /// Parses the text of a file.
    ///
    /// # Errors
    /// [`Error::Other`] with line and reason where it is not TOML or has an unknown key; [`Error::Input`] where a
    /// bridge has no name or another's, or what [`BridgeConfig::check`] refuses.
    pub fn parse(origin: &Origin, text: &str) -> Result<HostConfig> {
        let host: HostConfig = toml::from_str(text).map_err(|e| located(origin, text, &e))?;
        for (at, bridge) in host.bridges.iter().enumerate() {
            if bridge.name.is_empty() || host.bridges[..at].iter().any(|b| b.name == bridge.name) {
                return Err(origin.invalid("bridges: name", &bridge.name, "a name that no other bridge has"));
            }
            bridge
                .check()
                .map_err(|e| origin.invalid(&format!("bridges: {}", e.name), &e.found, e.expected))?;
        }
        Ok(host)
    }
}

/// Converts a TOML error: its line, and the first line of its message.
pub(super) fn located(origin: &Origin, text: &str, error: &toml::de::Error) -> Error {
    let line = Lines::of(text).line(error.span().map_or(0, |span| span.start));
    let words = error.message().lines().next().unwrap_or_default();
    Error::Other(format!("{}: {words}", origin.at(line)))
}

/// Where the lines of a text end.
pub(super) struct Lines(Vec<usize>);

impl Lines {
    pub(super) fn of(text: &str) -> Lines {
        Lines(text.bytes().enumerate().filter(|(_, byte)| *byte == b'\n').map(|(at, _)| at).collect())
    }

    /// The line of a byte of the text; the first line is 1.
    pub(super) fn line(&self, at: usize) -> usize {
        1 + self.0.partition_point(|end| *end < at)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<HostConfig> {
        HostConfig::parse(&Origin::file(Path::new("host.toml")), text)
    }

    #[test]
    fn full_file_is_parsed_and_empty_file_gives_defaults() {
        let host = parse(
            "dir = '/run/x'\nimages = ['/srv']\nbase_cache = '8M'\n[[bridges]]\nname = 'br1'\nports = ['tap:t0', 'packet:eth1']\n\
             [[guests]]\ncfg = 'web.cfg'\nnetns = 'web'\nrx = 'flip'\n[supervise]\nguests = true\n",
        )
        .unwrap();
        assert_eq!(
            (&*host.images, host.base_cache),
            (&[PathBuf::from("/srv")][..], Some(CacheSize(8 << 20)))
        );
        assert_eq!(host.bridges[0].to_string(), "br1=tap:t0,packet:eth1");
        assert_eq!("br1=tap:t0,packet:eth1".parse(), Ok(host.bridges[0].clone()));
        assert_eq!((host.guests[0].netns.as_deref(), host.guests[0].rx), (Some("web"), RxMethod::Flip));
        assert_eq!(host.supervise, Supervise { dom0: true, guests: true });
        let text = "[[bridges]]\nname='a'\nageing_time=30\nfdb_max_learned=100\ngroup_fwd_mask=0x4000\n";
        let set = parse(text).unwrap().bridges.remove(0);
        assert_eq!(set.to_string(), "a=ageing_time=30,fdb_max_learned=100,group_fwd_mask=0x4000");
        assert_eq!(set.to_string().parse(), Ok(set.clone()));
        assert_eq!(set.settings().unwrap().len(), 3);
        let wire = parse("[[bridges]]\nname = 'w'\nports = ['packet:eth1']\nwire = true\n").unwrap();
        assert_eq!(BridgeConfig::wire("w=packet:eth1"), Ok(wire.bridges[0].clone()));
        let empty = parse("").unwrap();
        assert_eq!(empty.bridges, ["xenbr0".parse().unwrap()]);
        assert!(empty.supervise.dom0 && !empty.supervise.guests);
    }

    #[test]
    fn invalid_host_is_rejected_with_its_line() {
        let cases = [
            ("dir = '/x'\nbrigdes = []", "host.toml:2: unknown field `brigdes`"),
            (
                "[[bridges]]\nname = 'a'\nports = ['eth0']",
                r#"host.toml:3: found "eth0", expected tap:NAME or packet"#,
            ),
            (
                "[[bridges]]\nname='a'\n[[bridges]]\nname='a'",
                r#"bridges: name: found "a", expected a name that no"#,
            ),
            (
                "[[bridges]]\nname='w'\nwire=true\nports=['tap:a','tap:b']",
                r#"bridges: ports: found "tap:a,tap:b", expected one port"#,
            ),
            ("[[bridges]]\nname='w'\nwire=true", r#"bridges: ports: found "", expected one port"#),
            (
                "[[bridges]]\nname='a'\ngroup_fwd_mask=0x4001",
                r#"bridges: group_fwd_mask: found "0x4001", expected a mask without the bits 0x7"#,
            ),
            (
                "[[bridges]]\nname='a'\nfdb_max_learned=0",
                r#"bridges: fdb_max_learned: found "0", expected a number of entries from 1"#,
            ),
            (
                "[[bridges]]\nname='a'\nageing_time=-1",
                "host.toml:3: invalid value: integer `-1`, expected u32",
            ),
            ("[[bridges]]\nports=[]", "host.toml:1: missing field `name`"),
            ("base_cache = 'x'", r#"host.toml:1: found "x", expected 0 or bytes in multiples of 512"#),
            ("dir = 3", "host.toml:1: invalid type: integer `3`, expected"),
            ("dir =", "host.toml:1: "),
        ];
        for (text, part) in cases {
            let error = parse(text).unwrap_err().to_string();
            assert!(error.contains(part), "{text:?}: {error}");
            assert_eq!(error.lines().count(), 1, "{error}");
        }
    }
}
