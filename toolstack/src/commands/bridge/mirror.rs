//! `xpv bridge mirror`.

use super::asked::{Asked, interface};
use super::words::Words;
use crate::control::bridge_query::{BridgeQuery, MirrorRow, MirrorSpec};
use crate::error::Result;
use crate::output;

const EXPECTED: &str = "[show] [br BRIDGE], add NAME br BRIDGE [all] [src PORT]... [dst PORT]... [vlan VID]... output PORT, or \
                        del NAME br BRIDGE";

/// Shows mirrors, or changes them.
pub(super) fn run(asked: &Asked<'_>, words: &[String]) -> Result<()> {
    let mut words = Words::new(words, EXPECTED);
    match words.next() {
        None => show(asked, None),
        Some("show") => match words.next() {
            None => show(asked, None),
            Some("br") => {
                let bridge = words.need("br")?;
                words.end()?;
                show(asked, Some(bridge))
            }
            Some(word) => Err(words.unknown(word)),
        },
        Some("add") => add(asked, words),
        Some("del" | "delete") => {
            let name = words.need("NAME")?.to_owned();
            let bridge = match words.next() {
                Some("br") => words.need("br")?.to_owned(),
                Some(word) => return Err(words.unknown(word)),
                None => return Err(words.missing("br")),
            };
            words.end()?;
            asked.change(BridgeQuery::Unmirror { bridge, name }).map(drop)
        }
        Some(word) => Err(words.unknown(word)),
    }
}

fn add(asked: &Asked<'_>, mut words: Words<'_>) -> Result<()> {
    let name = words.need("NAME")?.to_owned();
    let (mut bridge, mut mirror) = (None, MirrorSpec::default());
    while let Some(word) = words.next() {
        if !matches!(word, "src" | "dst" | "vlan") {
            words.once(word)?;
        }
        match word {
            "br" => bridge = Some(words.need(word)?.to_owned()),
            "all" => mirror.select_all = true,
            "src" => mirror.select_src.push(asked.port(words.need(word)?)?.row.port),
            "dst" => mirror.select_dst.push(asked.port(words.need(word)?)?.row.port),
            "vlan" => mirror.select_vlan.push(words.vlan()?),
            "output" => mirror.output = asked.port(words.need(word)?)?.row.port,
            word => return Err(words.unknown(word)),
        }
    }
    let bridge = bridge.ok_or_else(|| words.missing("br"))?;
    if mirror.output.is_empty() {
        return Err(words.missing("output"));
    }
    asked.change(BridgeQuery::Mirror { bridge, name, mirror }).map(drop)
}

fn show(asked: &Asked<'_>, bridge: Option<&str>) -> Result<()> {
    let mirrors = asked.mirrors(bridge)?;
    if asked.json {
        let rows: Vec<_> = mirrors.iter().map(|(bridge, row)| shown(bridge, row)).collect();
        return output::json(&rows);
    }
    for (bridge, MirrorRow { name, mirror, frames, bytes }) in &mirrors {
        let MirrorSpec { select_all, select_src, select_dst, select_vlan, output } = mirror;
        let all = select_all.then(|| " all".to_owned());
        let ports = |word: &'static str, ports: &[String]| {
            ports.iter().map(|port| format!(" {word} {}", interface(port))).collect::<Vec<_>>()
        };
        let vlans = select_vlan.iter().map(|vlan| format!(" vlan {vlan}"));
        let parts =
            all.into_iter().chain(ports("src", select_src)).chain(ports("dst", select_dst)).chain(vlans);
        let (selected, output): (String, _) = (parts.collect(), interface(output));
        output::line(format_args!(
            "{name} br {bridge}{selected} output {output}: {frames} frames {bytes} bytes"
        ))?;
    }
    Ok(())
}

fn shown(bridge: &str, row: &MirrorRow) -> serde_json::Value {
    let mut shown = serde_json::json!(row);
    shown["bridge"] = bridge.into();
    shown
}
