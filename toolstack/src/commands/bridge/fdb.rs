//! `xpv bridge fdb`.

use serde_json::{Value, json};

use super::asked::{Asked, interface};
use super::words::Words;
use crate::control::bridge_query::{BridgeQuery, FdbChange, FdbRow};
use crate::error::{Error, Result};
use crate::output;

const EXPECTED: &str = "[show] [br BRIDGE] [dev PORT] [vlan VID] [KIND], get MAC [br BRIDGE] [dev PORT] [vlan VID], add or replace MAC \
                        dev PORT [vlan VID] [static|dynamic|sticky], del MAC dev PORT [vlan VID], or flush dev PORT|BRIDGE [brport PORT] \
                        [br BRIDGE] [vlan VID] [KIND]";

/// Which entries are meant, or which one.
#[derive(Default)]
struct Chosen<'a> {
    bridge: Option<&'a str>,
    port: Option<&'a str>,
    vlan: Option<u16>,
    kind: Option<&'a str>,
}

impl<'a> Chosen<'a> {
    fn read(asked: &Asked<'_>, words: &mut Words<'a>) -> Result<Chosen<'a>> {
        let mut chosen = Chosen::default();
        while let Some(word) = words.keyword()? {
            match word {
                "br" => chosen.bridge = Some(words.need(word)?),
                // Of the bridge itself, as bridge(8) has it for `flush`, its ports are meant.
                "dev" => match words.need(word)? {
                    name if asked.has_bridge(name)? => chosen.bridge = Some(name),
                    name => chosen.port = Some(name),
                },
                "brport" => chosen.port = Some(words.need(word)?),
                "vlan" => chosen.vlan = Some(words.vlan()?),
                "static" | "sticky" | "dynamic" | "learned" => {
                    chosen.kind = match (chosen.kind, word) {
                        (None, word) => Some(word),
                        // As bridge(8) has an entry that is sticky.
                        (Some("static"), "sticky") | (Some("sticky"), "static") => Some("sticky"),
                        (Some(other), word) => {
                            return Err(Error::Other(format!(
                                "found {word:?} behind {other:?}, expected one kind"
                            )));
                        }
                    }
                }
                // As in bridge(8), where the bridge's entries are meant, and not those of the interface.
                "master" => {}
                word => return Err(words.unknown(word)),
            }
        }
        Ok(chosen)
    }
}

/// Shows stations, or changes them.
pub(super) fn run(asked: &Asked<'_>, all: &[String]) -> Result<()> {
    let mut words = Words::new(all, EXPECTED);
    match words.next() {
        None | Some("show") => show(asked, None, &Chosen::read(asked, &mut words)?),
        Some("get") => {
            let mac = words.need("MAC")?;
            show(asked, Some(mac), &Chosen::read(asked, &mut words)?)
        }
        Some("add") => asked.change(BridgeQuery::Add(entry(asked, &mut words)?)).map(drop),
        Some("replace") => asked.change(BridgeQuery::Replace(entry(asked, &mut words)?)).map(drop),
        Some("del" | "delete") => {
            let change = FdbChange { kind: None, ..entry(asked, &mut words)? };
            asked.change(BridgeQuery::Delete(change)).map(drop)
        }
        Some("flush") => flush(asked, &Chosen::read(asked, &mut words)?),
        Some("br" | "dev" | "brport" | "vlan") => {
            show(asked, None, &Chosen::read(asked, &mut Words::new(all, EXPECTED))?)
        }
        Some(word) => Err(words.unknown(word)),
    }
}

fn entry(asked: &Asked<'_>, words: &mut Words<'_>) -> Result<FdbChange> {
    let mac = words.need("MAC")?.to_owned();
    let chosen = Chosen::read(asked, words)?;
    let port = chosen.port.ok_or_else(|| Error::Other(format!("dev: missing, expected {EXPECTED}")))?;
    let port = asked.port(port)?;
    let kind = chosen.kind.map(str::to_owned);
    Ok(FdbChange { bridge: port.bridge, port: port.row.port, mac, vlan: chosen.vlan, kind })
}

fn flush(asked: &Asked<'_>, chosen: &Chosen<'_>) -> Result<()> {
    let port = chosen.port.map(|name| asked.port(name)).transpose()?;
    let bridge = chosen.bridge.map(str::to_owned).or_else(|| port.as_ref().map(|port| port.bridge.clone()));
    let bridge = bridge.ok_or_else(|| Error::Other(format!("dev: missing, expected {EXPECTED}")))?;
    let (port, kind) = (port.map(|port| port.row.port), chosen.kind.map(str::to_owned));
    let removed = asked.change(BridgeQuery::Flush { bridge, port, vlan: chosen.vlan, kind })?;
    match asked.json {
        true => output::json(&removed),
        false => output::line(format_args!("{} entries removed", removed["removed"])),
    }
}

/// Shows the stations that are chosen; of one address there must be any.
fn show(asked: &Asked<'_>, mac: Option<&str>, chosen: &Chosen<'_>) -> Result<()> {
    if let Some(name) = chosen.port {
        // An unknown port is an error, not one without stations.
        asked.port(name)?;
    }
    let mut stations = asked.stations(chosen.bridge)?;
    stations.retain(|(_, row)| {
        chosen.port.is_none_or(|name| row.port == name || interface(&row.port) == name)
            && chosen.vlan.is_none_or(|vlan| row.station.vlan == vlan)
            && chosen.kind.is_none_or(|kind| row.kind == kind)
            && mac.is_none_or(|mac| row.station.mac.eq_ignore_ascii_case(mac))
    });
    if let Some(mac) = mac.filter(|_| stations.is_empty()) {
        return Err(Error::Other(format!("MAC: found {mac:?}, expected the address of an entry")));
    }
    if asked.json {
        return output::json(&stations.iter().map(|(bridge, row)| shown(bridge, row)).collect::<Vec<_>>());
    }
    for (bridge, row) in &stations {
        let vlan = if row.station.vlan == 0 { String::new() } else { format!("vlan {} ", row.station.vlan) };
        let (port, state, flags) = (interface(&row.port), state(row), flags(row).join(" "));
        let text = format!("{} dev {port} {vlan}master {bridge} {state} {flags}", row.station.mac);
        output::line(format_args!("{}", text.split_whitespace().collect::<Vec<_>>().join(" ")))?;
    }
    Ok(())
}

/// A station as `bridge -j -s fdb` shows it.
fn shown(bridge: &str, row: &FdbRow) -> Value {
    let mut shown = json!({
        "mac": row.station.mac,
        "ifname": interface(&row.port),
        "updated": row.age_s,
        "flags": flags(row),
        "master": bridge,
        "state": state(row),
    });
    if row.station.vlan != 0 {
        shown["vlan"] = row.station.vlan.into();
    }
    shown
}

fn flags(row: &FdbRow) -> &'static [&'static str] {
    match row.kind.as_str() {
        "sticky" => &["sticky"],
        _ => &[],
    }
}

/// What bridge(8) says of an entry that does not expire; nothing of others.
fn state(row: &FdbRow) -> &'static str {
    match row.kind.as_str() {
        "own" => "permanent",
        "static" => "static",
        _ => "",
    }
}
