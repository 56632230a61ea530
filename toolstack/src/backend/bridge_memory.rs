//! What `xpv bridge` has changed of dom0's bridges, kept in the store for the next dom0: below `data/xpv/bridges` of the domain that serves
//! there is a node for each bridge, and in it one for each thing that is not as the bridge's line says.
//!
//! With a setting, and with a port, the line's own is kept. Where a later dom0 has another line, that is what it was told last, and counts.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, PoisonError};

use ::bridge::fdb::Mac;
use ::bridge::{Awaited, Bridge, FdbEntry, FdbKind, Given, Mirror};
use event_loop::Connector;
use netback::Attachment;
use ring_abi::netif::key::{BRIDGE, VIFNAME};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::json;
use xenbus::{Device, Keys};
use xenstore::{Client, DomId, Nodes};

use super::bridges::Bridges;
use crate::config::host_bridge::{BridgeConfig, bridge_setting};
use crate::config::host_port::HostPort;
use crate::config::vif::DEFAULT_BRIDGE;
use crate::control::bridge_query::MirrorSpec;
use crate::control::protocol::shortened;
use crate::error::{Error, Result, chain};

/// The nodes of a bridge, by their paths below its own.
type Tree = BTreeMap<String, String>;

/// What is changed of bridges, in the store.
#[derive(Clone)]
pub struct BridgeMemory(Arc<Memory>);

struct Memory {
    bridges: Bridges,
    lines: BTreeMap<String, Line>,
    root: String,
    kept: Mutex<Kept>,
}

/// What a bridge's line says.
struct Line {
    settings: BTreeMap<String, String>,
    ports: BTreeMap<String, String>,
}

struct Kept {
    connector: Arc<dyn Connector>,
    store: Client,
    /// What the store has of each bridge.
    written: BTreeMap<String, Tree>,
    /// The settings that were changed of each bridge.
    set: BTreeMap<String, BTreeMap<String, String>>,
}

/// A bridge's setting.
#[derive(Serialize, Deserialize)]
struct KeptSetting {
    key: String,
    /// What the line said.
    line: Option<String>,
    now: String,
}

/// A port to the host, as its line has it, and as it is; `None` where it is none.
#[derive(Serialize, Deserialize)]
struct KeptPort {
    port: String,
    line: Option<String>,
    now: Option<String>,
}

/// An entry of a forwarding database.
#[derive(Serialize, Deserialize)]
struct KeptEntry {
    port: String,
    address: Option<String>,
    mac: String,
    vlan: Option<u16>,
    kind: String,
}

/// A mirror.
#[derive(Serialize, Deserialize)]
struct KeptMirror {
    name: String,
    address: Option<String>,
    mirror: MirrorSpec,
}

impl BridgeMemory {
    /// Has bridges that were started as `configs` say be as an earlier process had them. What cannot be had again is logged and forgotten.
    ///
    /// # Errors
    /// The store cannot be connected or read.
    pub fn restore(
        connector: Arc<dyn Connector>,
        domid: DomId,
        bridges: &Bridges,
        configs: &[BridgeConfig],
    ) -> Result<BridgeMemory> {
        let mut store = Client::connect(&connector)?;
        let root = format!("/local/domain/{domid}/data/xpv/bridges");
        let lines: BTreeMap<_, _> =
            configs.iter().map(|config| (config.name.clone(), Line::of(config))).collect();
        let expected = expected_vifs(&mut store, domid)?;
        let mut written = BTreeMap::new();
        for node in children(&mut store, &root)? {
            let nodes = read_tree(&mut store, &format!("{root}/{node}"))?;
            match lines.keys().find(|name| escaped(name) == node) {
                Some(name) => drop(written.insert(name.clone(), nodes)),
                None => store.rm(&format!("{root}/{node}"))?,
            }
        }
        let kept = Kept { connector, store, written: written.clone(), set: BTreeMap::new() };
        let memory = Memory { bridges: bridges.clone(), lines, root, kept: Mutex::new(kept) };
        let memory = BridgeMemory(Arc::new(memory));
        for (name, nodes) in &written {
            // Ports and their VLANs before what is at them.
            let is_of_ports = |path: &str| path.starts_with("ports/") || path.starts_with("settings/");
            let (first, then): (Tree, Tree) =
                nodes.clone().into_iter().partition(|(path, _)| is_of_ports(path));
            for (path, value) in first.iter().chain(&then) {
                if let Err(error) = memory.0.restore_one(name, path, value, &expected) {
                    tracing::warn!(bridge = name, path, error = %chain(&error), "not as it was before");
                }
            }
            memory.keep(name)?;
        }
        Ok(memory)
    }

    /// Keeps a bridge's settings as `KEY=VALUE`, which were changed.
    ///
    /// # Errors
    /// Those of [`BridgeMemory::keep`].
    pub fn keep_settings(&self, bridge: &str, settings: &[String]) -> Result<()> {
        {
            let mut kept = self.0.kept.lock().unwrap_or_else(PoisonError::into_inner);
            let set = kept.set.entry(bridge.to_owned()).or_default();
            let pairs = settings.iter().filter_map(|text| text.split_once('='));
            set.extend(pairs.map(|(key, value)| (key.to_owned(), value.to_owned())));
        }
        self.keep(bridge)
    }

    /// Keeps what a bridge is now.
    ///
    /// # Errors
    /// The store cannot be written: the next process may find what was before.
    pub fn keep(&self, bridge: &str) -> Result<()> {
        let Memory { bridges, lines, root, kept } = &*self.0;
        let mut kept = kept.lock().unwrap_or_else(PoisonError::into_inner);
        let set = kept.set.get(bridge).cloned().unwrap_or_default();
        let Some(line) = lines.get(bridge) else { return Ok(()) };
        let failed = |e: ::bridge::Error| Error::Other(format!("bridge {bridge}: {}", chain(&e)));
        let mut nodes = line.changed(&set, &bridges.host_ports(bridge));
        let found = bridges.find(bridge)?;
        if !found.is_wire() {
            nodes.extend(given(found).map_err(failed)?);
        }
        kept.write(bridge, &format!("{root}/{}", escaped(bridge)), nodes)
    }

    /// The same attachment, of a vif at whose end a bridge's entries and mirrors end that were at its port.
    pub fn until_its_end(&self, attachment: Attachment, keys: &Keys) -> Attachment {
        if attachment.cleanup.is_some() {
            return attachment;
        }
        let (memory, bridge) = (self.clone(), keys.get(BRIDGE).unwrap_or(DEFAULT_BRIDGE).to_owned());
        let cleanup = move || {
            if let Err(error) = memory.keep(&bridge) {
                tracing::warn!(bridge, error = %chain(&error), "failed to keep what a bridge is");
            }
        };
        Attachment { cleanup: Some(Box::new(cleanup)), ..attachment }
    }
}

impl Line {
    fn of(config: &BridgeConfig) -> Line {
        let settings = BridgeConfig { ports: Vec::new(), ..config.clone() }.to_string();
        let parts = settings.split_once('=').map_or("", |(_, parts)| parts).split(',');
        let settings = parts.filter_map(|part| part.split_once('='));
        let ports = config.ports.iter().map(|port| (port.interface.to_string(), port.to_string()));
        Line {
            settings: settings.map(|(key, value)| (key.to_owned(), value.to_owned())).collect(),
            ports: ports.collect(),
        }
    }

    /// The nodes of the settings that were changed, and of ports that are not as the line says.
    fn changed(&self, set: &BTreeMap<String, String>, ports: &BTreeMap<String, String>) -> Tree {
        let settings = set.iter().map(|(key, now)| {
            let line = self.settings.get(key).cloned();
            (format!("settings/{key}"), json!(KeptSetting { key: key.clone(), line, now: now.clone() }))
        });
        let names: BTreeSet<_> = self.ports.keys().chain(ports.keys()).collect();
        let ports = names.into_iter().filter(|name| self.ports.get(*name) != ports.get(*name)).map(|name| {
            let (line, now) = (self.ports.get(name).cloned(), ports.get(name).cloned());
            (format!("ports/{}", escaped(name)), json!(KeptPort { port: name.clone(), line, now }))
        });
        settings.chain(ports).map(|(path, value)| (path, value.to_string())).collect()
    }
}

/// The nodes of the entries and mirrors that a bridge was given, and of those that wait for their ports.
fn given(bridge: &Bridge) -> std::result::Result<Tree, ::bridge::Error> {
    let addresses: BTreeMap<_, _> =
        bridge.ports()?.into_iter().map(|port| (port.name, port.settings.address)).collect();
    let address = |port: &str| addresses.get(port).copied().flatten();
    let is_given = |kind| matches!(kind, FdbKind::Static | FdbKind::Sticky | FdbKind::Dynamic);
    let entries = bridge.fdb()?.into_iter().filter(|row| is_given(row.kind)).map(|row| {
        let entry = FdbEntry { mac: row.mac, vlan: Some(row.vlan), port: row.port, kind: row.kind };
        Awaited { address: address(&entry.port), given: Given::Entry(entry) }
    });
    let mirrors = bridge.mirrors()?.into_iter().map(|info| Awaited {
        address: address(&info.mirror.output),
        given: Given::Mirror(info.name, info.mirror),
    });
    Ok(entries.chain(mirrors).chain(bridge.awaited()?).map(node).collect())
}

fn node(Awaited { address, given }: Awaited) -> (String, String) {
    let address = address.map(|address| address.to_string());
    match given {
        Given::Entry(FdbEntry { mac, vlan, port, kind }) => {
            let (mac, kind) = (mac.to_string(), kind.name().to_owned());
            let path = format!("fdb/{}-{}", mac.replace(':', ""), vlan.unwrap_or(0));
            (path, json!(KeptEntry { port, address, mac, vlan, kind }).to_string())
        }
        Given::Mirror(name, mirror) => {
            let path = format!("mirrors/{}", escaped(&name));
            (path, json!(KeptMirror { name, address, mirror: mirror.into() }).to_string())
        }
    }
}

impl Memory {
    fn restore_one(&self, bridge: &str, path: &str, value: &str, expected: &BTreeSet<String>) -> Result<()> {
        let found = self.bridges.find(bridge)?;
        let line = self.lines.get(bridge);
        let awaited = match path.split('/').next() {
            Some("settings") => {
                let KeptSetting { key, line: then, now } = read(value)?;
                let said = line.and_then(|line| line.settings.get(&key));
                return if said == then.as_ref() { self.set(bridge, found, &key, now) } else { Ok(()) };
            }
            Some("ports") => {
                let kept: KeptPort = read(value)?;
                let said = line.and_then(|line| line.ports.get(&kept.port));
                return if said == kept.line.as_ref() { self.restore_port(bridge, kept) } else { Ok(()) };
            }
            Some("fdb") => {
                let KeptEntry { port, address, mac, vlan, kind } = read(value)?;
                let (mac, kind) =
                    (mac_of(&mac).map_err(Error::Other)?, kind_of(&kind).map_err(Error::Other)?);
                let given = Given::Entry(FdbEntry { mac, vlan, port, kind });
                Awaited { address: address_of(address)?, given }
            }
            _ => {
                let KeptMirror { name, address, mirror } = read(value)?;
                Awaited { address: address_of(address)?, given: Given::Mirror(name, mirror.into()) }
            }
        };
        let port = awaited.given.port();
        let failed = |e: ::bridge::Error| Error::Other(chain(&e).to_string());
        match expected.contains(port) || self.bridges.host_ports(bridge).contains_key(port) {
            true => found.give_again(awaited).map_err(failed),
            false => Err(Error::Other(format!("port: found {port:?}, which is not there any more"))),
        }
    }

    fn set(&self, bridge: &str, found: &Bridge, key: &str, now: String) -> Result<()> {
        let text = format!("{key}={now}");
        let setting = bridge_setting(&text).unwrap_or_else(|| Err(format!("found {text:?}, no setting")));
        let setting = setting.map_err(Error::Other)?;
        found.set_bridge(setting).map_err(|e| Error::Other(chain(&e).to_string()))?;
        let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        kept.set.entry(bridge.to_owned()).or_default().insert(key.to_owned(), now);
        Ok(())
    }

    fn restore_port(&self, bridge: &str, KeptPort { port, line, now }: KeptPort) -> Result<()> {
        let read = |text: &String| text.parse::<HostPort>().map_err(Error::Other);
        match (line, now.as_ref().map(read).transpose()?) {
            (None, Some(added)) => self.bridges.add_port(bridge, &added),
            (_, Some(changed)) => self.bridges.reset_port(bridge, &changed),
            (_, None) => self.bridges.remove_port(bridge, &port),
        }
    }
}

impl Kept {
    /// Makes the nodes of a bridge these.
    fn write(&mut self, bridge: &str, path: &str, nodes: Tree) -> Result<()> {
        // Nothing is watched: there is an event only of a connection that is closed.
        if self.store.poll_event().is_err_and(|error| error.is_disconnected()) {
            self.store = Client::connect(&self.connector)?;
        }
        let written = self.written.entry(bridge.to_owned()).or_default();
        let changed = nodes.iter().filter(|(key, value)| written.get(*key) != Some(*value));
        let changed: Vec<_> = changed.map(|(key, value)| (format!("{path}/{key}"), value.as_str())).collect();
        self.store.write_each(changed)?;
        for key in written.keys().filter(|key| !nodes.contains_key(*key)) {
            match self.store.rm(&format!("{path}/{key}")) {
                // An administrator has removed it.
                Err(error) if error.is_not_found() => {}
                removed => removed?,
            }
        }
        *written = nodes;
        Ok(())
    }
}

fn read<T: DeserializeOwned>(value: &str) -> Result<T> {
    serde_json::from_str(value).map_err(|error| Error::Other(format!("found {value:?}: {error}")))
}

/// Reads an address.
pub(super) fn mac_of(text: &str) -> Result<Mac, String> {
    let read = text.parse().map(|mac: ring_abi::netif::Mac| Mac::new(mac.0));
    read.map_err(|_| {
        format!("mac: found {:?}, expected an address such as 00:16:3e:01:02:03", shortened(text))
    })
}

/// Reads a kind of entry by its name.
pub(super) fn kind_of(text: &str) -> Result<FdbKind, String> {
    let known = [FdbKind::Static, FdbKind::Sticky, FdbKind::Dynamic, FdbKind::Learned];
    known.into_iter().find(|kind| kind.name() == text).ok_or_else(|| {
        format!("kind: found {:?}, expected static, sticky, dynamic or learned", shortened(text))
    })
}

fn address_of(text: Option<String>) -> Result<Option<Mac>> {
    text.map(|text| mac_of(&text).map_err(Error::Other)).transpose()
}

/// The names of the ports that the vifs in the store have.
fn expected_vifs(store: &mut Client, domid: DomId) -> Result<BTreeSet<String>> {
    let root = format!("/local/domain/{domid}/backend/vif");
    let mut names = BTreeSet::new();
    for front in children(store, &root)? {
        for id in children(store, &format!("{root}/{front}"))? {
            let (Ok(number), Ok(devid)) = (front.parse(), id.parse()) else { continue };
            let renamed = store.read_opt(&format!("{root}/{front}/{id}/{VIFNAME}"))?;
            let renamed = renamed.and_then(|name| String::from_utf8(name).ok()).unwrap_or_default();
            let keys = Keys::empty().with(VIFNAME, &renamed);
            names.insert(netback::vif_name(&Device::new("vif", DomId(number), devid), &keys));
        }
    }
    Ok(names)
}

fn children(store: &mut Client, path: &str) -> Result<Vec<String>> {
    match store.directory(path) {
        Err(error) if error.is_not_found() => Ok(Vec::new()),
        names => Ok(names?),
    }
}

/// The nodes of a bridge, which are two below it.
fn read_tree(store: &mut Client, path: &str) -> Result<Tree> {
    let mut nodes = BTreeMap::new();
    for kind in children(store, path)? {
        for name in children(store, &format!("{path}/{kind}"))? {
            let value = store.read_text(&format!("{path}/{kind}/{name}"))?;
            nodes.insert(format!("{kind}/{name}"), value);
        }
    }
    Ok(nodes)
}

/// A name of the characters that a node's name can have, each other as its number.
fn escaped(name: &str) -> String {
    let one = |byte: u8| match byte {
        b'-' | b'_' => char::from(byte).to_string(),
        byte if byte.is_ascii_alphanumeric() => char::from(byte).to_string(),
        byte => format!("@{byte:02x}"),
    };
    name.bytes().map(one).collect()
}

impl From<Mirror> for MirrorSpec {
    fn from(mirror: Mirror) -> MirrorSpec {
        let Mirror { select_all, select_src, select_dst, select_vlan, output } = mirror;
        MirrorSpec { select_all, select_src, select_dst, select_vlan, output }
    }
}

impl From<MirrorSpec> for Mirror {
    fn from(mirror: MirrorSpec) -> Mirror {
        let MirrorSpec { select_all, select_src, select_dst, select_vlan, output } = mirror;
        Mirror { select_all, select_src, select_dst, select_vlan, output }
    }
}
