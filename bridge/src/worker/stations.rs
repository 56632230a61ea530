//! What other threads ask of the worker's forwarding database, and of the bridge's settings.

use crate::{
    BridgeInfo, BridgeSetting, Error, FdbEntry, FdbError, FdbFilter, FdbRow,
    fdb::{Entry, Mac, PortId},
    vlan,
};

use super::Worker;

const FDB: Error = Error::Wire("forwarding database");

impl Worker {
    pub(super) fn fdb_rows(&self) -> Vec<FdbRow> {
        let row = |entry: Entry| {
            let Entry { station, port, age_s, kind } = entry;
            let port = self.ports.get(usize::from(port.0))?.as_ref()?.name.clone();
            Some(FdbRow { mac: station.mac(), vlan: station.vlan(), port, age_s, kind })
        };
        self.switch
            .fdb()
            .into_iter()
            .flat_map(|fdb| fdb.entries(self.since_start_s()))
            .filter_map(row)
            .collect()
    }

    pub(super) fn fdb_add(&mut self, entry: &FdbEntry, replaces: bool) -> Result<(), Error> {
        let FdbEntry { mac, vlan, port, kind } = entry;
        let id = self.in_fdb(port)?;
        check(*vlan).map_err(|error| failed(*mac, port, error))?;
        let now_s = self.since_start_s();
        let added = self.switch.fdb_add((*mac, *vlan), (id, *kind), replaces, now_s);
        added.map_err(|error| failed(*mac, port, error))?;
        self.forget_awaited(*mac, *vlan, None);
        Ok(())
    }

    pub(super) fn fdb_delete(&mut self, mac: Mac, vlan: Option<u16>, port: String) -> Result<(), Error> {
        if self.forget_awaited(mac, vlan, Some(&port)) > 0 {
            return Ok(());
        }
        let id = self.in_fdb(&port)?;
        check(vlan).map_err(|error| failed(mac, &port, error))?;
        let deleted = self.switch.fdb_delete((mac, vlan), id, self.since_start_s());
        deleted.map_err(|error| failed(mac, &port, error))
    }

    pub(super) fn fdb_flush(&mut self, filter: &FdbFilter) -> Result<usize, Error> {
        let awaited = self.flush_awaited(filter);
        let FdbFilter { port, vlan, kind } = filter;
        if awaited > 0 && port.as_deref().is_some_and(|port| self.find(port).is_none()) {
            return Ok(awaited);
        }
        let id = port.as_deref().map(|port| self.in_fdb(port)).transpose()?;
        if self.switch.fdb().is_none() {
            return Err(FDB);
        }
        let flushed = self.switch.fdb_flush(|station, at, of| {
            id.is_none_or(|id| id == at)
                && vlan.is_none_or(|vlan| vlan == station.vlan())
                && kind.is_none_or(|kind| kind == of)
        });
        Ok(awaited + flushed)
    }

    /// The port of this name on a bridge with a forwarding database.
    fn in_fdb(&self, port: &str) -> Result<PortId, Error> {
        let id = self.find(port).ok_or_else(|| Error::NoSuchPort(port.to_owned()))?;
        self.switch.fdb().map(|_| id).ok_or(FDB)
    }

    pub(super) fn set_bridge(&mut self, setting: BridgeSetting) -> Result<(), Error> {
        setting.check()?;
        self.info()?;
        self.switch.set(setting);
        Ok(())
    }

    pub(super) fn info(&self) -> Result<BridgeInfo, Error> {
        self.switch.info().ok_or(Error::Wire("settings"))
    }
}

/// Whether there can be such a VLAN.
fn check(vlan: Option<u16>) -> Result<(), FdbError> {
    if vlan.is_none_or(|vlan| vlan <= vlan::MAX) { Ok(()) } else { Err(FdbError::Vlan) }
}

fn failed(mac: Mac, port: &str, error: FdbError) -> Error {
    Error::Fdb { mac, port: port.to_owned(), error }
}
