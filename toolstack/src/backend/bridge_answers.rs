//! Answers the control socket's requests about dom0's bridges, their ports and forwarding databases, and carries changes out.

use std::collections::BTreeMap;

use ::bridge::{
    Bridge, Counters, DropReason, FdbEntry, FdbFilter, FdbKind, Flag, Flood, MirrorInfo, PortInfo,
};
use netback::Ports;
use serde::Serialize;
use serde_json::{Value, json};
use xenstore::DomId;

use super::bridge_memory::{BridgeMemory, kind_of, mac_of};
use super::bridges::Bridges;
use crate::config::host_bridge::{BRIDGE_SETTINGS, bridge_setting};
use crate::control::bridge_query::{
    BridgeQuery, BridgeRow, BridgeSettings, BridgesReply, FdbChange, FdbRow, MirrorRow, PortCounters,
    PortRow, RowsReply, StationId,
};
use crate::control::protocol::shortened;
use crate::error::chain;

/// The most bytes of the rows of a reply.
const MAX_ROWS: usize = 128 << 10;

/// The bridges of a process that serves a domain, and the ports of its vifs.
pub struct BridgeAnswers {
    domid: DomId,
    bridges: Bridges,
    vifs: Ports,
    memory: Option<BridgeMemory>,
}

impl BridgeAnswers {
    /// Answers about these bridges.
    pub fn new(domid: DomId, bridges: Bridges, vifs: Ports) -> BridgeAnswers {
        BridgeAnswers { domid, bridges, vifs, memory: None }
    }

    /// The same, which keeps what is changed.
    pub fn with_memory(self, memory: BridgeMemory) -> BridgeAnswers {
        BridgeAnswers { memory: Some(memory), ..self }
    }

    /// Answers a request.
    ///
    /// # Errors
    /// There is no such bridge or port, what is asked for cannot be done, or it is done and cannot be kept for the next process.
    pub fn answer(&self, query: BridgeQuery) -> Result<Value, String> {
        let changed = query.changed().map(str::to_owned);
        let settings = match &query {
            BridgeQuery::Set { port: None, settings, .. } => settings.clone(),
            _ => Vec::new(),
        };
        let reply = self.carry_out(query)?;
        if let (Some(memory), Some(bridge)) = (&self.memory, changed) {
            let kept = memory.keep_settings(&bridge, &settings);
            kept.map_err(|error| format!("done, but not kept for the next dom0: {}", chain(&error)))?;
        }
        Ok(reply)
    }

    fn carry_out(&self, query: BridgeQuery) -> Result<Value, String> {
        match query {
            BridgeQuery::List {} => self.list(),
            BridgeQuery::Ports { bridge, after } => self.ports(&bridge, after),
            BridgeQuery::Fdb { bridge, after } => self.fdb(&bridge, after),
            BridgeQuery::Set { bridge, port: None, settings } => self.set_bridge(&bridge, &settings),
            BridgeQuery::Set { bridge, port: Some(port), settings } => {
                self.bridges.set_port(&bridge, &port, &settings).map_err(shown)?;
                Ok(json!({}))
            }
            BridgeQuery::Attach { bridge, port } => {
                let port = port.parse().map_err(|error| format!("port: {error}"))?;
                self.bridges.add_port(&bridge, &port).map_err(shown)?;
                Ok(json!({}))
            }
            BridgeQuery::Detach { bridge, port } => {
                self.bridges.remove_port(&bridge, &port).map_err(shown)?;
                Ok(json!({}))
            }
            BridgeQuery::Add(change) => {
                let (bridge, entry) = self.entry(change)?;
                bridge.fdb_add(entry).map(|()| json!({})).map_err(shown)
            }
            BridgeQuery::Replace(change) => {
                let (bridge, entry) = self.entry(change)?;
                bridge.fdb_replace(entry).map(|()| json!({})).map_err(shown)
            }
            BridgeQuery::Delete(change) => {
                let (bridge, FdbEntry { mac, vlan, port, .. }) = self.entry(change)?;
                bridge.fdb_delete(mac, vlan, &port).map(|()| json!({})).map_err(shown)
            }
            BridgeQuery::Mirrors { bridge } => self.mirrors(&bridge),
            BridgeQuery::Mirror { bridge, name, mirror } => {
                if name.is_empty() || !name.bytes().all(|byte| byte.is_ascii_graphic()) {
                    let expected = "a word of letters, digits and signs";
                    return Err(format!("name: found {:?}, expected {expected}", shortened(&name)));
                }
                self.find(&bridge)?.mirror_add(&name, mirror.into()).map(|()| json!({})).map_err(shown)
            }
            BridgeQuery::Unmirror { bridge, name } => {
                self.find(&bridge)?.mirror_delete(&name).map(|()| json!({})).map_err(shown)
            }
            BridgeQuery::Flush { bridge, port, vlan, kind } => {
                let kind = kind.as_deref().map(kind_of).transpose()?;
                let filter = FdbFilter { port, vlan, kind };
                let removed = self.find(&bridge)?.fdb_flush(filter).map_err(shown)?;
                Ok(json!({ "removed": removed }))
            }
        }
    }

    fn find(&self, name: &str) -> Result<&Bridge, String> {
        self.bridges.find(name).map_err(shown)
    }

    fn list(&self) -> Result<Value, String> {
        let mut bridges = Vec::new();
        for (name, bridge) in self.bridges.iter() {
            let settings = match bridge.is_wire() {
                true => None,
                false => Some(bridge.info().map_err(shown)?),
            };
            bridges.push(BridgeRow {
                name: name.to_owned(),
                wire: bridge.is_wire(),
                ports: bridge.ports().map_err(shown)?.len(),
                longest_turn_us: bridge.longest_turn().as_micros() as u64,
                settings: settings.map(|info| BridgeSettings {
                    ageing_time: info.ageing_time_s,
                    fdb_max_learned: info.fdb_max_learned,
                    fdb_n_learned: info.fdb_n_learned,
                    group_fwd_mask: info.group_fwd_mask.bits(),
                }),
            });
        }
        Ok(json!(BridgesReply { domid: self.domid.0, bridges }))
    }

    fn ports(&self, bridge: &str, after: Option<String>) -> Result<Value, String> {
        let bridge = self.find(bridge)?;
        let mut ports = bridge.ports().map_err(shown)?;
        ports.retain(|port| after.as_ref().is_none_or(|after| port.name > *after));
        ports.sort_by(|one, other| one.name.cmp(&other.name));
        let vifs = self.vifs.of_bridge(bridge);
        let rows = ports.into_iter().map(|port| port_row(port, &vifs));
        Ok(page(rows, |row| row.port.clone()))
    }

    fn fdb(&self, bridge: &str, after: Option<StationId>) -> Result<Value, String> {
        let rows = self.find(bridge)?.fdb().map_err(shown)?;
        let row = |row: ::bridge::FdbRow| FdbRow {
            station: StationId { mac: row.mac.to_string(), vlan: row.vlan },
            port: row.port,
            kind: row.kind.name().to_owned(),
            age_s: row.age_s,
        };
        let mut rows: Vec<_> = rows.into_iter().map(row).collect();
        rows.retain(|row| after.as_ref().is_none_or(|after| row.station > *after));
        rows.sort_by(|one, other| one.station.cmp(&other.station));
        Ok(page(rows.into_iter(), |row| row.station.clone()))
    }

    fn mirrors(&self, bridge: &str) -> Result<Value, String> {
        let row = |info: MirrorInfo| MirrorRow {
            name: info.name,
            mirror: info.mirror.into(),
            frames: info.frames,
            bytes: info.bytes,
        };
        let mirrors = self.find(bridge)?.mirrors().map_err(shown)?;
        Ok(page(mirrors.into_iter().map(row), |row| row.name.clone()))
    }

    /// Changes all of a bridge's settings that are given, or none.
    fn set_bridge(&self, name: &str, settings: &[String]) -> Result<Value, String> {
        let bridge = self.find(name)?;
        let read = |text: &String| {
            let keys = BRIDGE_SETTINGS.join(", ");
            let unknown =
                || format!("found {:?}, expected KEY=VALUE with KEY one of {keys}", shortened(text));
            bridge_setting(text).ok_or_else(unknown)?
        };
        let settings = settings.iter().map(read).collect::<Result<Vec<_>, _>>()?;
        settings.into_iter().try_for_each(|setting| bridge.set_bridge(setting).map_err(shown))?;
        Ok(json!({}))
    }

    fn entry(&self, change: FdbChange) -> Result<(&Bridge, FdbEntry), String> {
        let FdbChange { bridge, port, mac, vlan, kind } = change;
        let mac = mac_of(&mac)?;
        let kind = kind.as_deref().map_or(Ok(FdbKind::Static), kind_of)?;
        Ok((self.find(&bridge)?, FdbEntry { mac, vlan, port, kind }))
    }
}

fn port_row(port: PortInfo, vifs: &BTreeMap<String, (u16, u32)>) -> PortRow {
    let vif = vifs.get(&port.name);
    let settings = port.settings;
    PortRow {
        domid: vif.map(|vif| vif.0),
        devid: vif.map(|vif| vif.1),
        address: settings.address.map(|address| address.to_string()),
        lock: settings.lock.to_string(),
        ip: settings.allowed.to_string(),
        rate: settings.rate.to_string(),
        rate_in: settings.rate_in.to_string(),
        vlan: settings.vlans.to_string(),
        storm: Flood::ALL.map(|flood| (flood.limit_name().to_owned(), settings.storm.get(flood))).into(),
        flags: Flag::ALL.map(|flag| (flag.name().to_owned(), settings.flags.has(flag))).into(),
        counters: counters(&port.counters),
        port: port.name,
    }
}

fn counters(counters: &Counters) -> PortCounters {
    let &Counters { rx_frames, rx_bytes, tx_frames, tx_bytes, mac_moves, .. } = counters;
    let drops = DropReason::ALL.map(|reason| (reason.name().to_owned(), counters.dropped(reason)));
    let drops = drops.into_iter().filter(|(_, frames)| *frames > 0).collect();
    PortCounters { rx_frames, rx_bytes, tx_frames, tx_bytes, drops, mac_moves }
}

/// As many rows as a reply has room for.
fn page<T: Serialize, N: Serialize>(rows: impl Iterator<Item = T>, id: impl Fn(&T) -> N) -> Value {
    let mut taken: Vec<T> = Vec::new();
    let mut bytes = 0;
    for row in rows {
        bytes += serde_json::to_string(&row).map_or(0, |text| text.len());
        if bytes > MAX_ROWS && !taken.is_empty() {
            let next = taken.last().map(id);
            return json!(RowsReply { rows: taken, next });
        }
        taken.push(row);
    }
    json!(RowsReply { rows: taken, next: None::<N> })
}

fn shown(error: impl std::error::Error) -> String {
    chain(&error).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;
    use ::bridge::{Caps, port::pair::Pair};

    fn answers(ports: usize) -> (BridgeAnswers, Vec<Pair>) {
        let bridges = Bridges::start(&["br0".parse().unwrap()]).unwrap();
        let mut ends = Vec::new();
        for number in 0..ports {
            let (end, port) = Pair::new(Caps::plain(1500), 16).unwrap();
            bridges.find("br0").unwrap().attach(&format!("p{number}"), Box::new(port)).unwrap();
            ends.push(end);
        }
        (BridgeAnswers::new(DomId(0), bridges, Ports::default()), ends)
    }

    fn ask(answers: &BridgeAnswers, query: Value) -> Result<Value, String> {
        answers.answer(serde_json::from_value(query).map_err(|e| e.to_string())?)
    }

    #[test]
    fn entries_and_settings_are_changed_and_shown() {
        let (answers, _ends) = answers(2);
        let add = |kind: &str| {
            let mac = "00:16:3e:00:00:09";
            ask(&answers, json!({"action": "add", "bridge": "br0", "port": "p1", "mac": mac, "kind": kind}))
        };
        add("static").unwrap();
        assert!(add("static").unwrap_err().contains("already"));
        assert!(add("odd").unwrap_err().starts_with("kind: found \"odd\", expected static"));
        let fdb = ask(&answers, json!({"action": "fdb", "bridge": "br0"})).unwrap();
        assert_eq!(
            (&fdb["rows"][0]["kind"], &fdb["rows"][0]["port"], &fdb["next"]),
            (&json!("static"), &json!("p1"), &Value::Null)
        );
        let set = |text: &str| ask(&answers, json!({"action": "set", "bridge": "br0", "settings": [text]}));
        set("ageing_time=30").unwrap();
        set("group_fwd_mask=0x4000").unwrap();
        assert!(set("group_fwd_mask=1").unwrap_err().contains("expected a mask without"));
        assert!(set("stp=1").unwrap_err().contains("ageing_time"));
        let list = ask(&answers, json!({"action": "list"})).unwrap();
        let settings = &list["bridges"][0]["settings"];
        assert_eq!((&settings["ageing_time"], &settings["group_fwd_mask"]), (&json!(30), &json!(0x4000)));
        let flush = json!({"action": "flush", "bridge": "br0", "kind": "static"});
        assert_eq!(ask(&answers, flush).unwrap()["removed"], 1);
        assert!(ask(&answers, json!({"action": "ports", "bridge": "br7"})).unwrap_err().contains("\"br7\""));
    }

    #[test]
    fn rows_in_pages_are_each_listed_once() {
        let (answers, _ends) = answers(1);
        for number in 0..2000 {
            let mac = format!("02:00:00:00:{:02x}:{:02x}", number / 256, number % 256);
            ask(&answers, json!({"action": "add", "bridge": "br0", "port": "p0", "mac": mac})).unwrap();
        }
        let mut after = Value::Null;
        let mut found = Vec::new();
        let mut pages = 0;
        loop {
            let page = ask(&answers, json!({"action": "fdb", "bridge": "br0", "after": after})).unwrap();
            found.extend(page["rows"].as_array().unwrap().iter().map(|row| row["mac"].to_string()));
            pages += 1;
            after = page["next"].clone();
            if after.is_null() {
                break;
            }
        }
        found.dedup();
        assert_eq!(found.len(), 2000);
        assert!(pages > 1, "{pages}");
    }
}
