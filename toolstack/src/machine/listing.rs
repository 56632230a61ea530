//! Where guests and their devices are listed: a local machine, or the Xen host that this program runs on.

use hypervisor::xen::XenStore;
use ring_abi::xenbus::key::STATE;
use xenbus::XenbusState;
use xenstore::{Client, DomId, Nodes};

use super::xen_host::XenHost;
use super::{Machine, device};
use crate::control::client::{self, Served};
use crate::dir::Dir;
use crate::error::Result;

/// A local machine, or a Xen host beside xl.
pub enum Listing {
    /// A machine whose broker and store run in a directory.
    Local(Machine),
    /// The Xen host.
    Xen(XenHost),
}

/// A domain whose devices are listed.
pub struct ListedDomain {
    /// Its number.
    pub domid: DomId,
    /// Its name.
    pub name: String,
}

/// A device that is listed.
pub struct ListedDevice {
    /// Its number.
    pub id: u32,
    /// The backend's domain.
    pub backend_domid: DomId,
    /// The kind in the backend's path, which is not the frontend's for xl's `qdisk`.
    pub backend_kind: String,
    /// The backend's node.
    pub backend_path: String,
    /// The frontend's node.
    pub frontend_path: String,
    /// The node with the toolstack's keys of the backend.
    keys_path: String,
}

impl Listing {
    /// Opens the local machine in a directory, or the Xen host: that one if `xen`, or if no machine was started there and
    /// this is a Xen host.
    ///
    /// # Errors
    /// No machine runs there, or the store of the Xen host cannot be used.
    pub fn open(dir: &Dir, xen: bool) -> Result<Listing> {
        match xen || !Machine::is_present(dir) && XenStore::is_present() {
            true => XenHost::connect().map(Listing::Xen),
            false => Machine::connect(dir).map(Listing::Local),
        }
    }

    /// The store.
    pub fn store(&mut self) -> &mut Client {
        match self {
            Listing::Local(machine) => &mut machine.store,
            Listing::Xen(host) => &mut host.store,
        }
    }

    /// Finds the guest of this name or number.
    ///
    /// # Errors
    /// [`Error::Other`](crate::error::Error::Other) if there is none.
    pub fn find_guest(&mut self, name_or_id: &str) -> Result<ListedDomain> {
        match self {
            Listing::Local(machine) => {
                let domain = machine.find_guest(name_or_id)?;
                Ok(ListedDomain { domid: domain.domid, name: domain.name })
            }
            Listing::Xen(host) => {
                let domain = host.find(name_or_id)?;
                Ok(ListedDomain { domid: domain.domid, name: domain.name() })
            }
        }
    }

    /// Lists a domain's devices of one kind in the order of their numbers.
    pub fn devices(&mut self, domid: DomId, kind: &str) -> Result<Vec<ListedDevice>> {
        let machine = match self {
            Listing::Local(machine) => machine,
            Listing::Xen(host) => return host.devices(domid, kind),
        };
        let devices = device::list(&mut machine.store, domid, kind)?;
        let listed = devices.iter().filter_map(|device| {
            ListedDevice::new(device.id, device.front_path(), device.back_path(), device::libxl_path(device))
        });
        Ok(listed.collect())
    }
}

impl ListedDevice {
    /// A device with these nodes; `None` if the backend's is not the path of one.
    pub(super) fn new(id: u32, frontend: String, backend: String, keys: String) -> Option<ListedDevice> {
        let (domid, rest) = backend.strip_prefix("/local/domain/")?.split_once("/backend/")?;
        Some(ListedDevice {
            id,
            backend_domid: DomId(domid.parse().ok()?),
            backend_kind: rest.split_once('/')?.0.to_owned(),
            frontend_path: frontend,
            backend_path: backend,
            keys_path: keys,
        })
    }

    /// The frontend's state as a number; 0 if it has none.
    pub fn frontend_state(&self, store: &mut Client) -> Result<u8> {
        let state = store.read_opt(&format!("{}/{STATE}", self.frontend_path))?.unwrap_or_default();
        let state = std::str::from_utf8(&state).ok().and_then(|text| text.parse::<XenbusState>().ok());
        Ok(state.unwrap_or_default() as u8)
    }

    /// The value of a key that the toolstack wrote for the backend.
    pub fn key(&self, store: &mut Client, key: &str) -> Result<Option<String>> {
        match store.read_text(&format!("{}/{key}", self.keys_path)) {
            Err(e) if e.is_not_found() => Ok(None),
            value => Ok(Some(value?)),
        }
    }

    /// What the process that serves it knows of it.
    pub fn served<'s>(&self, served: &'s Served) -> Option<&'s client::Device> {
        let is_its = served.domid == Some(self.backend_domid.0);
        served.find(&self.backend_kind, self.id).filter(|_| is_its)
    }
}
