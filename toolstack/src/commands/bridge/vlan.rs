//! `xpv bridge vlan`.

use bridge::Vlans;
use serde::Serialize;
use serde_json::json;

use super::asked::Asked;
use super::link::dev;
use super::words::Words;
use crate::error::{Error, Result};
use crate::output;

const EXPECTED: &str = "[show] [dev PORT]; `xpv bridge link set dev PORT vlan VLANS` changes them";

/// VLANs of a port with the same flags, as `bridge -j vlan` shows them.
#[derive(Debug, PartialEq, Eq, Serialize)]
struct Range {
    vlan: u16,
    #[serde(rename = "vlanEnd", skip_serializing_if = "Option::is_none")]
    end: Option<u16>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    flags: Vec<&'static str>,
}

/// Shows the VLANs of ports.
pub(super) fn run(asked: &Asked<'_>, words: &[String]) -> Result<()> {
    let mut words = Words::new(words, EXPECTED);
    let name = match words.next() {
        None => None,
        Some("show") => dev(&mut words)?,
        Some("dev") => Some(words.need("dev")?),
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
        if vlan == vlans.pvid() {
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
        assert!(vlans("odd").is_err());
    }
}
