//! `xpv bridge vlan`.

use bridge::Vlans;
use serde::Serialize;
use serde_json::json;

use super::asked::Asked;
use super::link::dev;
use super::set;
use super::words::Words;
use crate::error::{Error, Result};
use crate::output;

const EXPECTED: &str =
    "[show] [dev PORT], add dev PORT vid VID[-VID] [pvid] [untagged], or del dev PORT vid VID[-VID]";

/// VLANs of a port with the same flags, as `bridge -j vlan` shows them.
#[derive(Debug, PartialEq, Eq, Serialize)]
struct Range {
    vlan: u16,
    #[serde(rename = "vlanEnd", skip_serializing_if = "Option::is_none")]
    end: Option<u16>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    flags: Vec<&'static str>,
}

/// Shows the VLANs of ports, or changes those of one.
pub(super) fn run(asked: &Asked<'_>, words: &[String]) -> Result<()> {
    let mut words = Words::new(words, EXPECTED);
    let name = match words.next() {
        None => None,
        Some("show") => dev(&mut words)?,
        Some("dev") => {
            let name = words.need("dev")?;
            words.end()?;
            Some(name)
        }
        Some(word @ ("add" | "del" | "delete")) => return change(asked, &mut words, word == "add"),
        Some(word) => return Err(words.unknown(word)),
    };
    let ports = match name {
        Some(name) => vec![asked.port(name)?],
        None => asked.ports(None)?,
    };
    let mut rows = Vec::new();
    for port in &ports {
        rows.push((port.interface(), ranges(&vlans(&port.row.vlan)?)));
    }
    if asked.json {
        let rows: Vec<_> =
            rows.iter().map(|(name, vlans)| json!({ "ifname": name, "vlans": vlans })).collect();
        return output::json(&rows);
    }
    output::line(format_args!("{:<17} vlan-id", "port"))?;
    for (mut name, ranges) in rows {
        for Range { vlan, end, flags } in ranges {
            let end = end.map(|end| format!("-{end}")).unwrap_or_default();
            let flags: String = flags.iter().map(|flag| format!(" {flag}")).collect();
            output::line(format_args!("{name:<17} {vlan}{end}{flags}"))?;
            name = "";
        }
    }
    Ok(())
}

/// Adds VLANs to those of a port, or removes them, as bridge(8) does.
fn change(asked: &Asked<'_>, words: &mut Words<'_>, adds: bool) -> Result<()> {
    let (mut name, mut vid, mut is_pvid, mut is_untagged) = (None, None, false, false);
    while let Some(word) = words.keyword()? {
        match word {
            "dev" => name = Some(words.need(word)?),
            "vid" => vid = Some(range(words.need(word)?)?),
            "pvid" if adds => is_pvid = true,
            "untagged" if adds => is_untagged = true,
            // As bridge(8) writes them, where they do not have another meaning.
            "pvid" | "untagged" | "master" => {}
            word => return Err(words.unknown(word)),
        }
    }
    let name = name.ok_or_else(|| words.missing("dev"))?;
    let (first, last) = vid.ok_or_else(|| words.missing("vid"))?;
    if is_pvid && first != last {
        return Err(Error::Other(format!("vid: found {first}-{last}, expected one VLAN with pvid")));
    }
    let port = asked.port(name)?;
    let mut changed = vlans(&port.row.vlan)?;
    for vlan in first..=last {
        changed = match adds {
            true => changed.adding(vlan, is_pvid, is_untagged),
            false => changed.removing(vlan).ok_or_else(|| {
                let given = &port.row.vlan;
                Error::Other(format!(
                    "vid: found {vlan}, expected a VLAN that {name} was given: its own are {given}"
                ))
            })?,
        };
    }
    set::port(asked, &port, vec![format!("vlan={changed}")])
}

/// Reads `VID` or `VID-VID`.
fn range(text: &str) -> Result<(u16, u16)> {
    let (first, last) = text.split_once('-').unwrap_or((text, text));
    let vlan = |text: &str| text.parse().ok().filter(|vlan| (1..=4094).contains(vlan));
    let range = vlan(first).zip(vlan(last)).filter(|(first, last)| first <= last);
    range.ok_or_else(|| {
        Error::Other(format!("vid: found {text:?}, expected a VLAN from 1 to 4094, or FIRST-LAST"))
    })
}

/// Reads what a bridge shows of a port's VLANs.
fn vlans(text: &str) -> Result<Vlans> {
    match text {
        "trunk" => Ok(Vlans::trunk()),
        "untagged" => Ok(Vlans::untagged()),
        text => text.parse().map_err(|error| Error::Other(format!("vlan: {error}"))),
    }
}

fn ranges(vlans: &Vlans) -> Vec<Range> {
    let mut ranges: Vec<Range> = Vec::new();
    for vlan in vlans.iter() {
        let mut flags = Vec::new();
        if vlans.pvid() == Some(vlan) {
            flags.push("PVID");
        }
        if vlans.is_untagged(vlan) {
            flags.push("Egress Untagged");
        }
        match ranges.last_mut() {
            Some(last) if last.end.unwrap_or(last.vlan) + 1 == vlan && last.flags == flags => {
                last.end = Some(vlan)
            }
            _ => ranges.push(Range { vlan, end: None, flags }),
        }
    }
    ranges
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn vlans_are_shown_in_the_ranges_of_bridge_8() {
        let shown = |text: &str| serde_json::to_value(ranges(&vlans(text).unwrap())).unwrap();
        let own = json!(["PVID", "Egress Untagged"]);
        assert_eq!(shown("10"), json!([{"vlan": 10, "flags": own}]));
        assert_eq!(
            shown("10p/20-29/40u"),
            json!([
                {"vlan": 10, "flags": own}, {"vlan": 20, "vlanEnd": 29},
                {"vlan": 40, "flags": ["Egress Untagged"]}
            ])
        );
        assert_eq!(shown("trunk"), json!([{"vlan": 0, "flags": own}, {"vlan": 1, "vlanEnd": 4094}]));
        assert_eq!(shown("untagged"), json!([{"vlan": 0, "flags": own}]));
        assert_eq!(
            shown("10pt/20u"),
            json!([{"vlan": 10, "flags": ["PVID"]}, {"vlan": 20, "flags": ["Egress Untagged"]}])
        );
        assert_eq!(shown("none"), json!([]));
        assert!(vlans("odd").is_err());
    }

    #[test]
    fn vid_is_one_vlan_or_a_range() {
        assert_eq!((range("10").unwrap(), range("10-20").unwrap()), ((10, 10), (10, 20)));
        for text in ["0", "4095", "20-10", "ten", "1-", ""] {
            let error = range(text).unwrap_err().to_string();
            assert!(error.contains(&format!("vid: found {text:?}")), "{error}");
        }
    }
}
