//! `xpv bridge list` and `show`.

use serde_json::json;

use super::asked::{Asked, Port};
use crate::control::bridge_query::{BridgeRow, PortCounters};
use crate::error::{Error, Result};
use crate::output;

/// Lists the bridges.
pub(super) fn list(asked: &Asked<'_>) -> Result<()> {
    let bridges = asked.bridges()?;
    if asked.json {
        return output::json(&bridges);
    }
    output::line(format_args!(
        "{:<16} {:<8} {:>6} {:>9} {:>9}",
        "Bridge", "Kind", "Ports", "Learned", "Max"
    ))?;
    for BridgeRow { name, wire, ports, settings, .. } in bridges {
        let kind = if wire { "wire" } else { "learning" };
        let learned = |number: Option<u32>| number.map_or_else(|| "-".into(), |number| number.to_string());
        let (now, most) = (settings.map(|all| all.fdb_n_learned), settings.map(|all| all.fdb_max_learned));
        output::line(format_args!(
            "{name:<16} {kind:<8} {ports:>6} {:>9} {:>9}",
            learned(now),
            learned(most)
        ))?;
    }
    Ok(())
}

/// Shows a bridge and its ports.
pub(super) fn show(asked: &Asked<'_>, name: &str) -> Result<()> {
    let bridge = asked.bridges()?.into_iter().find(|bridge| bridge.name == name);
    let bridge = bridge
        .ok_or_else(|| Error::Other(format!("found {name:?}, expected the name of a bridge of dom0")))?;
    let ports = asked.ports(Some(name))?;
    if asked.json {
        let rows: Vec<_> = ports.iter().map(|port| &port.row).collect();
        return output::json(&json!({ "bridge": bridge, "ports": rows }));
    }
    let kind = if bridge.wire { "wire" } else { "learning" };
    output::line(format_args!("{name}: {kind}"))?;
    if let Some(settings) = bridge.settings {
        output::line(format_args!(
            "    ageing_time {} fdb_max_learned {} fdb_n_learned {} group_fwd_mask {:#x}",
            settings.ageing_time, settings.fdb_max_learned, settings.fdb_n_learned, settings.group_fwd_mask
        ))?;
    }
    ports.iter().try_for_each(shown)
}

fn shown(port: &Port) -> Result<()> {
    let row = &port.row;
    let address = row.address.as_deref().unwrap_or("-");
    output::line(format_args!("{}: address {address} lock {} vlan {}", row.port, row.lock, row.vlan))?;
    if (row.rate.as_str(), row.rate_in.as_str()) != ("none", "none") {
        output::line(format_args!("    rate {}, rate-in {}", row.rate, row.rate_in))?;
    }
    let PortCounters { rx_frames, rx_bytes, tx_frames, tx_bytes, drops, mac_moves } = &row.counters;
    output::line(format_args!(
        "    rx {rx_frames} frames {rx_bytes} bytes, tx {tx_frames} frames {tx_bytes} bytes, mac_moves {mac_moves}"
    ))?;
    if drops.is_empty() {
        return Ok(());
    }
    let reasons: Vec<_> = drops.iter().map(|(reason, frames)| format!("{reason} {frames}")).collect();
    output::line(format_args!("    dropped: {}", reasons.join(", ")))
}
