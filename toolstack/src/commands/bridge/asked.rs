//! What `xpv bridge` asks dom0.

use serde::de::DeserializeOwned;
use serde_json::Value;

use crate::control::bridge_query::{
    BridgeQuery, BridgeRow, BridgesReply, FdbRow, MirrorRow, PortRow, RowsReply,
};
use crate::control::client::Connection;
use crate::control::protocol::Request;
use crate::dir::Dir;
use crate::error::{Error, Result};

/// Of which dom0 something is asked, and how it is shown.
pub(super) struct Asked<'a> {
    pub(super) dir: &'a Dir,
    pub(super) xen: bool,
    pub(super) json: bool,
}

/// A port, and the bridge that it is of.
pub(super) struct Port {
    pub(super) bridge: String,
    pub(super) row: PortRow,
}

impl Port {
    /// The name of its interface: a port of the host has in its own name how that is opened.
    pub(super) fn interface(&self) -> &str {
        interface(&self.row.port)
    }
}

/// The interface's name in that of a port.
pub(super) fn interface(port: &str) -> &str {
    port.split_once(':').map_or(port, |(_, name)| name)
}

impl Asked<'_> {
    pub(super) fn bridges(&self) -> Result<Vec<BridgeRow>> {
        let reply: BridgesReply = self.ask(BridgeQuery::List {})?;
        Ok(reply.bridges)
    }

    /// The ports of one bridge, or of all.
    pub(super) fn ports(&self, of: Option<&str>) -> Result<Vec<Port>> {
        let mut ports = Vec::new();
        for bridge in self.names(of, |_| true)? {
            let rows = self.rows(|after| BridgeQuery::Ports { bridge: bridge.clone(), after })?;
            ports.extend(rows.into_iter().map(|row| Port { bridge: bridge.clone(), row }));
        }
        Ok(ports)
    }

    /// The stations that one bridge, or all of them, know.
    pub(super) fn stations(&self, of: Option<&str>) -> Result<Vec<(String, FdbRow)>> {
        let mut stations = Vec::new();
        for name in self.names(of, |bridge| !bridge.wire)? {
            let rows = self.rows(|after| BridgeQuery::Fdb { bridge: name.clone(), after })?;
            stations.extend(rows.into_iter().map(|row| (name.clone(), row)));
        }
        Ok(stations)
    }

    /// The mirrors of one bridge, or of all.
    pub(super) fn mirrors(&self, of: Option<&str>) -> Result<Vec<(String, MirrorRow)>> {
        let mut mirrors = Vec::new();
        for name in self.names(of, |bridge| !bridge.wire)? {
            let reply: RowsReply<MirrorRow, String> =
                self.ask(BridgeQuery::Mirrors { bridge: name.clone() })?;
            mirrors.extend(reply.rows.into_iter().map(|row| (name.clone(), row)));
        }
        Ok(mirrors)
    }

    /// All rows of a reply that comes in pages: `query` asks for those behind what it is given.
    fn rows<T: DeserializeOwned, N: DeserializeOwned>(
        &self,
        query: impl Fn(Option<N>) -> BridgeQuery,
    ) -> Result<Vec<T>> {
        let mut rows = Vec::new();
        let mut after = None;
        loop {
            let reply: RowsReply<T, N> = self.ask(query(after))?;
            rows.extend(reply.rows);
            after = reply.next;
            if after.is_none() {
                return Ok(rows);
            }
        }
    }

    /// The port of this name, or of the interface of this name.
    ///
    /// # Errors
    /// There is none, or several bridges have one.
    pub(super) fn port(&self, name: &str) -> Result<Port> {
        let mut ports = self.ports(None)?;
        ports.retain(|port| port.row.port == name || port.interface() == name);
        match ports.pop() {
            Some(port) if ports.is_empty() => Ok(port),
            Some(_) => Err(Error::Other(format!("dev: {name:?} is a port of several bridges"))),
            None => Err(Error::Other(format!("dev: found {name:?}, expected a port of a bridge of dom0"))),
        }
    }

    /// Whether there is a bridge of this name.
    pub(super) fn has_bridge(&self, name: &str) -> Result<bool> {
        Ok(self.bridges()?.iter().any(|bridge| bridge.name == name))
    }

    /// Has dom0 change something.
    pub(super) fn change(&self, query: BridgeQuery) -> Result<Value> {
        self.ask(query)
    }

    /// The name of one bridge, or those of all of a kind.
    fn names(&self, of: Option<&str>, is_one: impl Fn(&BridgeRow) -> bool) -> Result<Vec<String>> {
        match of {
            Some(name) => Ok(vec![name.to_owned()]),
            None => Ok(self.bridges()?.into_iter().filter(is_one).map(|bridge| bridge.name).collect()),
        }
    }

    fn ask<T: DeserializeOwned>(&self, query: BridgeQuery) -> Result<T> {
        Connection::open(self.dir)?.call(&Request::Bridge(query))
    }
}
