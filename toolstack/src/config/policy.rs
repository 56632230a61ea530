//! A policy: the limits that `xpv dom0 --policy FILE` gives to disks and interfaces by what they are, as xl passes no keys that it does
//! not know. `docs/limits.md` describes the file.

use std::collections::BTreeMap;
use std::path::Path;

use ring_abi::blkif;
use ring_abi::blkif::vdev::Vdev;
use ring_abi::netif::key::MAC;
use serde::Deserialize;
use toml::{Spanned, Value};
use xenbus::{Device, Keys};

use super::target::path_of;
use super::vif_setting::{SETTINGS, setting};
use super::{DiskLimits, host};
use crate::error::{Error, Origin, Result};

/// The rules of a policy, in the order of the file.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Policy {
    rules: Vec<Rule>,
}

/// What a device's domain is called.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct DomainNames {
    /// Its name; `None` where it is not known.
    pub name: Option<String>,
    /// Its virtual machine's UUID; `None` where it is not known.
    pub uuid: Option<String>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Rule {
    kind: &'static str,
    /// All are to hold.
    conditions: Vec<Condition>,
    /// The backend's keys, in the store's form.
    keys: Vec<(&'static str, String)>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Condition {
    /// A pattern of the domain's name.
    Domain(String),
    Uuid(String),
    /// A device's number.
    Number(u32),
    /// What the target begins with.
    Target(String),
    /// A pattern of the address.
    Mac(String),
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    #[serde(default)]
    disk: Vec<BTreeMap<Spanned<String>, Spanned<Value>>>,
    #[serde(default)]
    vif: Vec<BTreeMap<Spanned<String>, Spanned<Value>>>,
}

impl Policy {
    /// Reads and parses a file.
    ///
    /// # Errors
    /// [`Error::File`] if it cannot be read; errors of [`Policy::parse`].
    pub fn read(path: &Path) -> Result<Policy> {
        let text = std::fs::read_to_string(path).map_err(|e| Error::file(path, "reading the policy", e))?;
        Policy::parse(&Origin::file(path), &text)
    }

    /// Parses the text of a file.
    ///
    /// # Errors
    /// Those of the file name its line, the key, the value found and what is valid.
    pub fn parse(origin: &Origin, text: &str) -> Result<Policy> {
        let file: File = toml::from_str(text).map_err(|e| host::located(origin, text, &e))?;
        let lines = &host::Lines::of(text);
        let rules = |kind, tables: Vec<BTreeMap<_, _>>| {
            tables.into_iter().map(move |table| Rule::parse(origin, lines, kind, table))
        };
        let rules = rules("vbd", file.disk).chain(rules("vif", file.vif)).collect::<Result<_>>()?;
        Ok(Policy { rules })
    }

    /// Whether it has no rules.
    pub fn is_empty(&self) -> bool {
        self.rules.is_empty()
    }

    /// How many rules it has.
    pub fn len(&self) -> usize {
        self.rules.len()
    }

    /// The keys that the policy gives to a device with these keys of its toolstack, which override them. Of two rules that give the
    /// same key the later one counts.
    pub fn keys(&self, device: &Device, names: &DomainNames, own: &Keys) -> Keys {
        let mut keys = Keys::default();
        let rules = self.rules.iter().filter(|rule| rule.kind == device.kind);
        for rule in rules.filter(|rule| rule.conditions.iter().all(|is| is.holds(device, names, own))) {
            keys.extend(rule.keys.iter().map(|(name, value)| (*name, value)));
        }
        keys
    }
}

impl Rule {
    fn parse(
        origin: &Origin,
        lines: &host::Lines,
        kind: &'static str,
        table: BTreeMap<Spanned<String>, Spanned<Value>>,
    ) -> Result<Rule> {
        let mut rule = Rule { kind, conditions: Vec::new(), keys: Vec::new() };
        let mut limits = DiskLimits::default();
        let first = table
            .keys()
            .map(|name| lines.line(name.span().start))
            .min()
            .map_or_else(|| origin.clone(), |line| origin.at(line));
        for (name, value) in table {
            let at = origin.at(lines.line(name.span().start));
            let name = name.into_inner();
            let value = value.into_inner();
            let found = match &value {
                Value::String(text) => text.clone(),
                Value::Integer(number) => number.to_string(),
                other => return Err(at.invalid(&name, &other.to_string(), "a number or a text")),
            };
            match Condition::parse(&at, kind, &name, &found)? {
                Some(condition) => rule.conditions.push(condition),
                None if kind == "vbd" => {
                    limits.set(&at, &name, &found).unwrap_or_else(|| Err(unknown(&at, kind, &name)))?;
                }
                None => rule.keys.extend(vif_key(&at, &name, &found)?),
            }
        }
        limits.check(&first, |_| None)?;
        rule.keys.extend(limits.iter().map(|(name, value)| (name, value.to_owned())));
        if rule.keys.is_empty() {
            let expected = match kind {
                "vbd" => "a limit such as iops-total".to_owned(),
                _ => format!("one of {}", SETTINGS.join(", ")),
            };
            return Err(first.missing(if kind == "vbd" { "disk" } else { "vif" }, &expected));
        }
        Ok(rule)
    }
}

/// The key of the backend that a rule for interfaces gives.
fn vif_key(at: &Origin, name: &str, value: &str) -> Result<Option<(&'static str, String)>> {
    if !SETTINGS.contains(&name) {
        return Err(unknown(at, "vif", name));
    }
    let setting = setting(at, &format!("{name}={value}"))?;
    Ok(setting.value.map(|value| (setting.key, value)))
}

fn unknown(at: &Origin, kind: &str, name: &str) -> Error {
    match kind {
        "vbd" => at.invalid("disk", name, "domain, uuid, vdev, target or a limit such as iops-total"),
        _ => at.invalid("vif", name, format!("one of domain, uuid, mac, devid, {}", SETTINGS.join(", "))),
    }
}

impl Condition {
    /// `None` if the name is of no condition.
    fn parse(at: &Origin, kind: &str, name: &str, value: &str) -> Result<Option<Condition>> {
        let value = value.to_owned();
        Ok(Some(match (kind, name) {
            (_, "domain") => Condition::Domain(value),
            (_, "uuid") => Condition::Uuid(value),
            ("vbd", "target") => Condition::Target(value),
            ("vbd", "vdev") => {
                let expected = "a device name such as xvda, or a number";
                let vdev = Vdev::parse(&value).ok_or_else(|| at.invalid("disk: vdev", &value, expected))?;
                Condition::Number(vdev.number())
            }
            ("vif", "mac") => Condition::Mac(value.to_ascii_lowercase()),
            ("vif", "devid") => {
                let devid = value.parse().map_err(|_| at.invalid("vif: devid", &value, "a number"))?;
                Condition::Number(devid)
            }
            _ => return Ok(None),
        }))
    }

    fn holds(&self, device: &Device, names: &DomainNames, own: &Keys) -> bool {
        match self {
            Condition::Domain(pattern) => names.name.as_deref().is_some_and(|name| matches(pattern, name)),
            Condition::Uuid(uuid) => names.uuid.as_deref().is_some_and(|it| it.eq_ignore_ascii_case(uuid)),
            Condition::Number(number) => device.id == *number,
            Condition::Target(prefix) => {
                path_of(own.get(blkif::key::PARAMS).unwrap_or_default()).starts_with(prefix)
            }
            Condition::Mac(pattern) => {
                own.get(MAC).is_some_and(|mac| matches(pattern, &mac.to_ascii_lowercase()))
            }
        }
    }
}

/// Whether a text is what the pattern says, in which `*` is any text.
fn matches(pattern: &str, text: &str) -> bool {
    let Some((start, rest)) = pattern.split_once('*') else { return pattern == text };
    let Some(mut text) = text.strip_prefix(start) else { return false };
    let mut parts: Vec<&str> = rest.split('*').collect();
    let last = parts.pop().unwrap_or_default();
    for part in parts {
        let Some(at) = text.find(part) else { return false };
        text = &text[at + part.len()..];
    }
    text.ends_with(last)
}

#[cfg(test)]
mod tests {
    use super::*;
    use xenstore::DomId;

    fn parse(text: &str) -> Result<Policy> {
        Policy::parse(&Origin::file(Path::new("policy.toml")), text)
    }

    fn names(name: &str) -> DomainNames {
        DomainNames { name: Some(name.into()), uuid: Some("F00D-1".into()) }
    }

    fn given(policy: &Policy, device: Device, name: &str, own: Keys) -> Vec<(String, String)> {
        let keys = policy.keys(&device, &names(name), &own);
        keys.iter().map(|(name, value)| (name.to_owned(), value.to_owned())).collect()
    }

    const POLICY: &str = "
[[disk]]                  # every disk
iops-total = 1000
bps-total = '100M'

[[disk]]
domain = 'web*'
vdev = 'xvdb'
iops-total = 50

[[disk]]
uuid = 'f00d-1'
target = '/srv/slow/'
throttle-group = 'slow'

[[vif]]
mac = '00:16:3E:*'
domain = 'web-1'
rate = '8Mb/s'
rate-in-packets = '10Kp/s'
lock = 'ip'
vlan = 10
isolated = 'on'
storm_broadcast = 200
storm_multicast = 'none'
ip = '10.0.0.5 fd00::/64'
";

    #[test]
    fn device_has_the_keys_of_all_rules_that_hold_and_the_later_one_counts() {
        let policy = parse(POLICY).unwrap();
        let disk = |id| Device::new("vbd", DomId(3), id);
        let own = |params: &str| Keys::default().with("params", params);
        let text = |keys: Vec<(String, String)>| {
            keys.into_iter().map(|(name, value)| format!("{name}={value}")).collect::<Vec<_>>().join(" ")
        };
        let of = |id, name, params| text(given(&policy, disk(id), name, own(params)));
        assert_eq!(of(51712, "web-1", "/srv/a"), "bps-total=104857600 iops-total=1000");
        assert_eq!(of(51728, "web-1", "/srv/a"), "bps-total=104857600 iops-total=50");
        assert_eq!(of(51728, "db", "/srv/a"), "bps-total=104857600 iops-total=1000");
        let slow = "bps-total=104857600 iops-total=1000 throttle-group=slow";
        for params in ["raw:/srv/slow/a", "qcow2:/srv/slow/a", "tap:aio:/srv/slow/a"] {
            assert_eq!(of(51712, "db", params), slow);
        }
        let vif = |mac: &str, name| {
            let own = Keys::default().with("mac", mac);
            text(given(&policy, Device::new("vif", DomId(3), 0), name, own))
        };
        assert_eq!(
            vif("00:16:3e:00:00:01", "web-1"),
            "ip=10.0.0.5 fd00::/64 isolated=on lock=ip rate=50000,50000 rate-in-packets=500,50000 storm_broadcast=200 storm_multicast=none vlan=10"
        );
        assert_eq!(vif("02:16:3e:00:00:01", "web-1"), "");
        assert_eq!(vif("00:16:3e:00:00:01", "web-10"), "");
        let nameless = policy.keys(&disk(51728), &DomainNames::default(), &own("/srv/slow/a"));
        assert_eq!(nameless.get("iops-total"), Some("1000"));
        assert!(parse("").unwrap().is_empty());
    }

    #[test]
    fn bad_rule_is_rejected_with_its_line_key_and_what_is_expected() {
        for (text, expected) in [
            (
                "[[disk]]\niops-totl = 5",
                r#"policy.toml:2: disk: found "iops-totl", expected domain, uuid, vdev"#,
            ),
            (
                "[[disk]]\niops-total = 'x'",
                r#"policy.toml:2: disk: iops-total: found "x", expected a number"#,
            ),
            (
                "[[disk]]\niops-total = -5",
                r#"policy.toml:2: disk: iops-total: found "-5", expected a number"#,
            ),
            (
                "[[disk]]\n\niops-total = true",
                r#"policy.toml:3: iops-total: found "true", expected a number or"#,
            ),
            ("[[disk]]\nvdev = 'nope'\nbps-read=1", r#"policy.toml:2: disk: vdev: found "nope""#),
            ("[[disk]]\ndomain = 'a'", "policy.toml:2: disk: missing, expected a limit"),
            (
                "[[disk]]\niops-total-max = 5",
                "disk: iops-total-max: found \"5\", expected iops-total beside it",
            ),
            ("[[vif]]\nrate = '5'", "policy.toml:2: vif: rate: found \"5\", expected a rate"),
            (
                "[[vif]]\nvdev = 'xvda'",
                "policy.toml:2: vif: found \"vdev\", expected one of domain, uuid, mac, devid, rate, rate-packets, rate-in, rate-in-packets, lock, ip, vlan, isolated",
            ),
            (
                "[[vif]]\nlock='ip'\nip = '10.0.0.0/33'",
                "policy.toml:3: vif: ip: found \"10.0.0.0/33\", expected a prefix",
            ),
            (
                "[[vif]]\nvlan = 4096",
                "policy.toml:2: vif: vlan: found \"4096\", expected a VLAN from 1 to 4094",
            ),
            ("[[vif]]\nlock='off,rate=1Mb/s'", "policy.toml:2: vif: "),
            ("[[disks]]\nrate = '5'", "policy.toml:1: unknown field `disks`"),
            ("disk = 5", "policy.toml:1: invalid type"),
            ("[[disk]", "policy.toml:1: "),
        ] {
            let error = parse(text).unwrap_err().to_string();
            assert!(error.contains(expected), "{text:?}: {error}");
            assert_eq!(error.lines().count(), 1, "{error}");
        }
    }

    #[test]
    fn pattern_matches_whole_texts() {
        for (pattern, text) in [
            ("web", "web"),
            ("*", ""),
            ("*", "x"),
            ("w*", "w"),
            ("w*b", "web"),
            ("*e*", "web"),
            ("a*b*c", "abbc"),
        ] {
            assert!(matches(pattern, text), "{pattern} {text}");
        }
        for (pattern, text) in
            [("web", "web1"), ("", "x"), ("w*b", "wb1"), ("a*a", "a"), ("w*e*b", "wb"), ("*ab*b", "xab")]
        {
            assert!(!matches(pattern, text), "{pattern} {text}");
        }
    }
}
