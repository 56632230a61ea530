//! What ports had in an earlier process, and have again as they come.

use crate::{
    Awaited, Error, FdbEntry, FdbFilter, Given,
    fdb::{Mac, PortId},
};

use super::Worker;

impl Worker {
    pub(super) fn give_again(&mut self, awaited: Awaited) -> Result<(), Error> {
        if self.switch.fdb().is_none() {
            return Err(Error::Wire("forwarding database"));
        }
        match self.find(awaited.given.port()) {
            Some(id) => self.give(id, awaited),
            None => {
                self.awaited.push(awaited);
                Ok(())
            }
        }
    }

    fn give(&mut self, id: PortId, Awaited { address, given }: Awaited) -> Result<(), Error> {
        let attached = self.ports.get(usize::from(id.0)).and_then(Option::as_ref);
        if attached.is_none_or(|attached| attached.settings.address != address) {
            return Err(Error::NoSuchPort(given.port().to_owned()));
        }
        match given {
            Given::Entry(entry) => self.fdb_add(&entry, true),
            Given::Mirror(name, mirror) => self.mirror_add(name, mirror, true),
        }
    }

    /// Gives a port that has come what waits for it.
    pub(super) fn give_awaited(&mut self, id: PortId, name: &str) {
        let (for_it, others) =
            std::mem::take(&mut self.awaited).into_iter().partition(|awaited| awaited.given.port() == name);
        self.awaited = others;
        for awaited in for_it {
            if let Err(error) = self.give(id, awaited) {
                tracing::warn!(bridge = self.name, port = name, %error, "a port does not have again what it had");
            }
        }
    }

    /// Forgets the entries of a station that wait; their number.
    pub(super) fn forget_awaited(&mut self, mac: Mac, vlan: Option<u16>, port: Option<&str>) -> usize {
        self.forget_entries(|entry| {
            entry.mac == mac
                && port.is_none_or(|port| port == entry.port)
                && (vlan.is_none() || entry.vlan.is_none() || vlan == entry.vlan)
        })
    }

    /// Forgets the entries that wait and that a filter names; their number.
    pub(super) fn flush_awaited(&mut self, FdbFilter { port, vlan, kind }: &FdbFilter) -> usize {
        self.forget_entries(|entry| {
            port.as_ref().is_none_or(|port| *port == entry.port)
                && (vlan.is_none() || *vlan == entry.vlan)
                && kind.is_none_or(|kind| kind == entry.kind)
        })
    }

    fn forget_entries(&mut self, is_one: impl Fn(&FdbEntry) -> bool) -> usize {
        let before = self.awaited.len();
        self.awaited.retain(|awaited| !matches!(&awaited.given, Given::Entry(entry) if is_one(entry)));
        before - self.awaited.len()
    }

    /// Whether a mirror of this name waits.
    pub(super) fn awaits_mirror(&self, name: &str) -> bool {
        self.awaited.iter().any(|awaited| matches!(&awaited.given, Given::Mirror(other, _) if other == name))
    }

    /// Forgets a mirror that waits; whether there was one.
    pub(super) fn forget_mirror(&mut self, name: &str) -> bool {
        let awaits = self.awaits_mirror(name);
        self.awaited.retain(|awaited| !matches!(&awaited.given, Given::Mirror(other, _) if other == name));
        awaits
    }
}
