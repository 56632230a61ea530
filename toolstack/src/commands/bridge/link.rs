//! `xpv bridge link`.

use bridge::{Flag, Flags};
use serde_json::{Map, json};

use super::asked::{Asked, Port};
use super::set;
use super::words::Words;
use crate::config::vif_setting::SETTINGS;
use crate::error::Result;
use crate::output;

const EXPECTED: &str = "[show] [dev PORT], or set dev PORT with a flag of bridge(8) and on or off, or another setting of \
                        `xpv network-set` and its value";

/// Shows ports, or changes one.
pub(super) fn run(asked: &Asked<'_>, words: &[String]) -> Result<()> {
    let mut words = Words::new(words, EXPECTED);
    match words.next() {
        None => show(asked, None),
        Some("show") => {
            let name = dev(&mut words)?;
            show(asked, name)
        }
        Some("dev") => {
            let name = words.need("dev")?;
            words.end()?;
            show(asked, Some(name))
        }
        Some("set") => change(asked, words),
        Some(word) => Err(words.unknown(word)),
    }
}

/// The port behind `dev`, with which the command ends.
pub(super) fn dev<'a>(words: &mut Words<'a>) -> Result<Option<&'a str>> {
    match words.next() {
        None => Ok(None),
        Some("dev") => {
            let name = words.need("dev")?;
            words.end().map(|()| Some(name))
        }
        Some(word) => Err(words.unknown(word)),
    }
}

fn change(asked: &Asked<'_>, mut words: Words<'_>) -> Result<()> {
    let mut name = None;
    let mut settings = Vec::new();
    while let Some(word) = words.keyword()? {
        match word {
            "dev" => name = Some(words.need("dev")?),
            // As `bridge link set` has them, which need not say that the bridge is meant.
            "master" => {}
            key if SETTINGS.contains(&key) => settings.push(format!("{key}={}", words.need(key)?)),
            word => return Err(words.unknown(word)),
        }
    }
    let name = name.ok_or_else(|| words.missing("dev"))?;
    if settings.is_empty() {
        return Err(words.missing("a setting"));
    }
    set::port(asked, &asked.port(name)?, settings)
}

fn show(asked: &Asked<'_>, name: Option<&str>) -> Result<()> {
    let ports = match name {
        Some(name) => vec![asked.port(name)?],
        None => asked.ports(None)?,
    };
    if asked.json {
        return output::json(&ports.iter().map(row).collect::<Vec<_>>());
    }
    for port in &ports {
        output::line(format_args!("{}: master {} state forwarding", port.interface(), port.bridge))?;
        let flags: Vec<_> =
            port.row.flags.iter().map(|(name, on)| format!("{name} {}", Flags::text(*on))).collect();
        output::line(format_args!("    {}", flags.join(" ")))?;
    }
    Ok(())
}

/// A port as `bridge -j -d link` shows it.
fn row(port: &Port) -> Map<String, serde_json::Value> {
    let mut row = Map::new();
    row.insert("ifname".into(), json!(port.interface()));
    row.insert("master".into(), json!(port.bridge));
    row.insert("state".into(), json!("forwarding"));
    for flag in Flag::ALL {
        let on = port.row.flags.get(flag.name()).copied();
        row.insert(flag.name().into(), json!(on.unwrap_or_else(|| flag.default_value())));
    }
    row
}
