//! The command `bridge` of the control protocol: what it asks about dom0's bridges and changes of them, and what is answered.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// What is asked, by its field `action`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "action", rename_all = "lowercase", deny_unknown_fields)]
pub enum BridgeQuery {
    /// The bridges.
    List {},
    /// A bridge's ports, in the order of their names.
    Ports {
        /// The bridge.
        bridge: String,
        /// Those behind the port of this name: `next` of an earlier reply.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        after: Option<String>,
    },
    /// The entries of a bridge's forwarding database, in the order of addresses and VLANs.
    Fdb {
        /// The bridge.
        bridge: String,
        /// Those behind this one: `next` of an earlier reply.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        after: Option<StationId>,
    },
    /// Changes settings of a bridge, or of a port of the host.
    Set {
        /// The bridge.
        bridge: String,
        /// The port; without it the bridge's own settings.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        port: Option<String>,
        /// Each `KEY=VALUE`.
        settings: Vec<String>,
    },
    /// Makes an interface of the host a port of a bridge.
    Attach {
        /// The bridge.
        bridge: String,
        /// The port with its settings, as on dom0's command line: `packet:eth1,vlan=10`.
        port: String,
    },
    /// Removes a port of the host from a bridge.
    Detach {
        /// The bridge.
        bridge: String,
        /// The port.
        port: String,
    },
    /// Adds an entry to the forwarding database.
    Add(FdbChange),
    /// The same, in the place of one of the same address and VLAN.
    Replace(FdbChange),
    /// Removes an entry.
    Delete(FdbChange),
    /// A bridge's mirrors.
    Mirrors {
        /// The bridge.
        bridge: String,
    },
    /// Adds a mirror, which lasts until it is removed or its output port ends.
    Mirror {
        /// The bridge.
        bridge: String,
        /// The mirror's name.
        name: String,
        /// What it copies.
        mirror: MirrorSpec,
    },
    /// Removes a mirror.
    Unmirror {
        /// The bridge.
        bridge: String,
        /// The mirror's name.
        name: String,
    },
    /// Removes all entries of which all is true that is named, but ports' own addresses.
    Flush {
        /// The bridge.
        bridge: String,
        /// They are at this port.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        port: Option<String>,
        /// They are in this VLAN.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        vlan: Option<u16>,
        /// They are of this kind.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        kind: Option<String>,
    },
}

impl BridgeQuery {
    /// The bridge of which it changes something.
    pub fn changed(&self) -> Option<&str> {
        match self {
            BridgeQuery::List {}
            | BridgeQuery::Ports { .. }
            | BridgeQuery::Fdb { .. }
            | BridgeQuery::Mirrors { .. } => None,
            BridgeQuery::Set { bridge, .. }
            | BridgeQuery::Attach { bridge, .. }
            | BridgeQuery::Detach { bridge, .. }
            | BridgeQuery::Mirror { bridge, .. }
            | BridgeQuery::Unmirror { bridge, .. }
            | BridgeQuery::Flush { bridge, .. } => Some(bridge),
            BridgeQuery::Add(change) | BridgeQuery::Replace(change) | BridgeQuery::Delete(change) => {
                Some(&change.bridge)
            }
        }
    }
}

/// What a mirror copies, and where to: `bridge::Mirror` by its fields' names.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct MirrorSpec {
    /// Frames from all ports.
    pub select_all: bool,
    /// Frames from these ports.
    pub select_src: Vec<String>,
    /// Frames that are sent to any of these.
    pub select_dst: Vec<String>,
    /// Of these only the ones in these VLANs; none named: all.
    pub select_vlan: Vec<u16>,
    /// The port that is sent the copies, and nothing else.
    pub output: String,
}

/// A mirror of a bridge.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct MirrorRow {
    /// Its name.
    pub name: String,
    /// What it copies.
    #[serde(flatten)]
    pub mirror: MirrorSpec,
    /// Frames that were copied.
    pub frames: u64,
    /// Their bytes.
    pub bytes: u64,
}

/// An entry of a forwarding database.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FdbChange {
    /// The bridge.
    pub bridge: String,
    /// The port.
    pub port: String,
    /// The station's address.
    pub mac: String,
    /// The VLAN; without it each of the port's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub vlan: Option<u16>,
    /// `static`, `sticky` or `dynamic`, of an entry that is added.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kind: Option<String>,
}

/// Which entry of a forwarding database.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct StationId {
    /// The station's address.
    pub mac: String,
    /// The VLAN, 0 where frames are in none.
    pub vlan: u16,
}

/// A bridge of dom0.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct BridgeRow {
    /// Its name.
    pub name: String,
    /// Whether it is a wire between two ports.
    pub wire: bool,
    /// How many ports it has.
    pub ports: usize,
    /// The longest round of all ports' turns, in microseconds of its thread's processor time.
    pub longest_turn_us: u64,
    /// Its settings; `None` of a wire.
    pub settings: Option<BridgeSettings>,
}

/// What is set for a bridge, by the names of ip-link(8).
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub struct BridgeSettings {
    /// Seconds after which an entry expires whose station is not seen.
    pub ageing_time: u32,
    /// Most learned entries.
    pub fdb_max_learned: u32,
    /// Learned entries.
    pub fdb_n_learned: u32,
    /// The link-local groups whose frames are forwarded.
    pub group_fwd_mask: u16,
}

/// A port of a bridge.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct PortRow {
    /// Its name: a vif's, or that of a port of the host, as `packet:eth1`.
    pub port: String,
    /// The frontend's domain of a vif.
    pub domid: Option<u16>,
    /// The vif's number.
    pub devid: Option<u32>,
    /// The address that is its own.
    pub address: Option<String>,
    /// From which addresses it may send.
    pub lock: String,
    /// The addresses of `lock=ip`.
    pub ip: String,
    /// What may be sent by it: `none`, or amounts in times.
    pub rate: String,
    /// What it is sent at most.
    pub rate_in: String,
    /// Its VLANs: `10p/20`, `untagged` or `trunk`.
    pub vlan: String,
    /// Its flags, by bridge(8)'s names.
    pub flags: BTreeMap<String, bool>,
    /// Its storm limits, in frames a second; `None` does not limit.
    pub storm: BTreeMap<String, Option<u32>>,
    /// Frames and bytes, and dropped frames.
    pub counters: PortCounters,
}

/// What a bridge has counted of a port: `rx` is what came from it.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct PortCounters {
    /// Frames that came from it.
    pub rx_frames: u64,
    /// Their bytes.
    pub rx_bytes: u64,
    /// Frames that were sent to it.
    pub tx_frames: u64,
    /// Their bytes.
    pub tx_bytes: u64,
    /// Dropped frames by reason, where there are any.
    pub drops: BTreeMap<String, u64>,
    /// Times that a station was seen here, and at another port before.
    pub mac_moves: u64,
}

/// An entry of a forwarding database.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct FdbRow {
    /// Which one.
    #[serde(flatten)]
    pub station: StationId,
    /// The port.
    pub port: String,
    /// `own`, `static`, `sticky`, `dynamic` or `learned`.
    pub kind: String,
    /// Seconds since the station was last seen.
    pub age_s: u32,
}

/// The reply to `list`.
#[derive(Debug, Serialize, Deserialize)]
pub struct BridgesReply {
    /// The domain that serves.
    pub domid: u16,
    /// The bridges.
    pub bridges: Vec<BridgeRow>,
}

/// The reply to `ports` and `fdb`.
#[derive(Debug, Serialize, Deserialize)]
pub struct RowsReply<T, N> {
    /// As many as fit.
    pub rows: Vec<T>,
    /// What to ask for as `after`; `None` if these are all.
    pub next: Option<N>,
}
