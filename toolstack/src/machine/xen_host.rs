//! A real Xen host, as its store describes it to the domain that this program runs in. Nothing is written.
//!
//! In dom0 the devices of a domain are those in `/libxl`, as for xl. A driver domain may not read that: there they are the
//! devices that it is the backend of.

use std::collections::BTreeSet;

use hypervisor::xen::XenStore;
use ring_abi::xenbus::key::{BACKEND, FRONTEND};
use xenstore::{Client, DomId, Nodes, XsError};

use super::STORE_TIMEOUT;
use super::listed_device::ListedDevice;
use crate::error::{Error, Result};

/// A connection to the store of the Xen host.
pub struct XenHost {
    /// The store.
    pub store: Client,
    /// The domain that this program runs in.
    domid: DomId,
}

/// A domain of the Xen host.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct XenDomain {
    /// Its number.
    pub domid: DomId,
    /// Its name; `None` where this domain may not read it.
    pub name: Option<String>,
    /// The memory that it is to have, in KiB.
    pub memory_kib: Option<u64>,
    /// Its processors that are online.
    pub vcpus: Option<u64>,
}

impl XenDomain {
    /// Its name, or `Domain-<number>`.
    pub fn name(&self) -> String {
        self.name.clone().unwrap_or_else(|| format!("Domain-{}", self.domid))
    }
}

impl XenHost {
    /// Connects to the store, through the kernel.
    ///
    /// # Errors
    /// This is no Xen host, or this process may not use its store.
    pub fn connect() -> Result<XenHost> {
        XenHost::new(Client::connect(&XenStore)?)
    }

    fn new(mut store: Client) -> Result<XenHost> {
        store.set_reply_timeout(Some(STORE_TIMEOUT));
        let domid = store.read_as("domid").map(DomId)?;
        Ok(XenHost { store, domid })
    }

    /// Lists the domains in the order of their numbers; in a domain that may not list all, itself and those that it is
    /// the backend of.
    pub fn domains(&mut self) -> Result<Vec<XenDomain>> {
        let mut domids = BTreeSet::from([self.domid.0]);
        domids.extend(self.numbers::<u16>("/local/domain")?);
        for kind in ["vbd", "vif"] {
            domids.extend(self.numbers::<u16>(&format!("/local/domain/{}/backend/{kind}", self.domid))?);
        }
        domids.into_iter().map(|domid| self.domain(DomId(domid))).collect()
    }

    fn domain(&mut self, domid: DomId) -> Result<XenDomain> {
        let home = format!("/local/domain/{domid}");
        let memory = self.readable(&format!("{home}/memory/target"))?;
        let mut online = 0;
        for cpu in self.numbers::<u32>(&format!("{home}/cpu"))? {
            let available = self.readable(&format!("{home}/cpu/{cpu}/availability"))?;
            online += u64::from(available.as_deref() == Some("online"));
        }
        Ok(XenDomain {
            domid,
            name: self.readable(&format!("{home}/name"))?,
            memory_kib: memory.and_then(|kib| kib.parse().ok()),
            vcpus: (online > 0).then_some(online),
        })
    }

    /// Finds the domain of this name or number.
    ///
    /// # Errors
    /// [`Error::Other`] if there is none.
    pub fn find(&mut self, name_or_id: &str) -> Result<XenDomain> {
        let number = name_or_id.parse::<u16>().ok();
        let is_wanted =
            |domain: &XenDomain| domain.name.as_deref() == Some(name_or_id) || Some(domain.domid.0) == number;
        let found = self.domains()?.into_iter().find(is_wanted);
        found.ok_or_else(|| Error::Other(format!("there is no domain {name_or_id:?} (see `xl list`)")))
    }

    /// Lists a domain's devices of one kind in the order of their numbers.
    pub fn devices(&mut self, domid: DomId, kind: &str) -> Result<Vec<ListedDevice>> {
        let own = self.domid;
        let directory = match own {
            DomId::DOM0 => format!("/libxl/{domid}/device/{kind}"),
            own => format!("/local/domain/{own}/backend/{kind}/{domid}"),
        };
        let mut ids: Vec<u32> = self.numbers(&directory)?;
        ids.sort_unstable();
        let mut devices = Vec::new();
        for id in ids {
            let node = format!("{directory}/{id}");
            let backend = match own {
                DomId::DOM0 => self.readable(&format!("{node}/{BACKEND}"))?,
                _ => Some(node.clone()),
            };
            let frontend = self.readable(&format!("{node}/{FRONTEND}"))?;
            // A device that is being removed has lost some of its nodes.
            if let (Some(backend), Some(frontend)) = (backend, frontend) {
                devices.extend(ListedDevice::new(id, frontend, backend.clone(), backend));
            }
        }
        Ok(devices)
    }

    /// The children of a node that are numbers; none if it does not exist or may not be read.
    fn numbers<T: std::str::FromStr>(&mut self, path: &str) -> Result<Vec<T>> {
        let names = visible(self.store.directory(path))?;
        Ok(names.unwrap_or_default().iter().filter_map(|name| name.parse().ok()).collect())
    }

    /// A node's value; `None` if it does not exist or may not be read.
    fn readable(&mut self, path: &str) -> Result<Option<String>> {
        Ok(visible(self.store.read_text(path))?)
    }
}

/// `None` for a node that does not exist, or that this domain may not read.
fn visible<T>(read: xenstore::client::Result<T>) -> xenstore::client::Result<Option<T>> {
    match read {
        Err(e) if matches!(e.store_error(), Some(XsError::ENOENT | XsError::EACCES)) => Ok(None),
        other => other.map(Some),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use xenstore::server::{Config, Store};
    use xenstore::{Access, Permission};

    /// The host as dom0 sees it, or as driver domain 2 does.
    fn host(store: &Store, own: u16) -> XenHost {
        if own == 0 {
            return XenHost::new(store.client().unwrap()).unwrap();
        }
        let (ours, theirs) = std::os::unix::net::UnixStream::pair().unwrap();
        store.introduce(DomId(own), theirs).unwrap();
        XenHost::new(Client::new(ours)).unwrap()
    }

    /// Nodes as libxl writes them.
    const NODES: [(&str, &str); 17] = [
        ("/local/domain/0/domid", "0"),
        ("/local/domain/2/domid", "2"),
        ("/local/domain/2/backend/vbd/3", ""),
        ("/local/domain/0/name", "Domain-0"),
        ("/local/domain/3/name", "web"),
        ("/local/domain/3/memory/target", "163840"),
        ("/local/domain/3/cpu/0/availability", "online"),
        ("/local/domain/3/cpu/1/availability", "offline"),
        ("/local/domain/2/name", "drv"),
        ("/libxl/3/device/vbd/51712/backend", "/local/domain/0/backend/vbd/3/51712"),
        ("/libxl/3/device/vbd/51712/frontend", "/local/domain/3/device/vbd/51712"),
        ("/libxl/3/device/vbd/768/backend", "/local/domain/2/backend/vbd/3/768"),
        ("/libxl/3/device/vbd/768/frontend", "/local/domain/3/device/vbd/768"),
        ("/libxl/3/device/vbd/51728/backend", "/local/domain/0/backend/qdisk/3/51728"),
        ("/libxl/3/device/vbd/51728/frontend", "/local/domain/3/device/vbd/51728"),
        ("/libxl/3/device/vbd/1/frontend", "being removed"),
        ("/local/domain/2/backend/vbd/3/768/frontend", "/local/domain/3/device/vbd/768"),
    ];

    fn store() -> Store {
        let store = Store::spawn(Config::default()).unwrap();
        let mut client = store.client().unwrap();
        for (path, value) in NODES {
            client.write(path, value).unwrap();
        }
        // A driver domain owns its backends, and may not even list the other domains.
        for path in
            ["", "/domid", "/name", "/backend", "/backend/vbd", "/backend/vbd/3", "/backend/vbd/3/768"]
        {
            own(&mut client, &format!("/local/domain/2{path}"));
        }
        own(&mut client, "/local/domain/2/backend/vbd/3/768/frontend");
        client.set_perms("/local/domain", &[Permission::new(DomId::DOM0, Access::None)]).unwrap();
        store
    }

    fn own(client: &mut Client, path: &str) {
        client.set_perms(path, &[Permission::new(DomId(2), Access::None)]).unwrap();
    }

    #[test]
    fn domains_are_found_by_name_and_by_number() {
        let store = store();
        let mut host = host(&store, 0);
        let web = XenDomain {
            domid: DomId(3),
            name: Some("web".into()),
            memory_kib: Some(163_840),
            vcpus: Some(1),
        };
        assert_eq!(host.domains().unwrap().len(), 3);
        assert_eq!(host.find("web").unwrap(), web);
        assert_eq!(host.find("3").unwrap(), web);
        assert_eq!(host.find("0").unwrap().name(), "Domain-0");
        let error = host.find("none").unwrap_err().to_string();
        assert!(error.contains("there is no domain \"none\""), "{error}");
    }

    #[test]
    fn driver_domain_finds_those_that_it_serves_by_number() {
        let store = store();
        let mut host = host(&store, 2);
        let domids: Vec<_> = host.domains().unwrap().iter().map(|domain| domain.domid.0).collect();
        assert_eq!(domids, [2, 3]);
        let web = host.find("3").unwrap();
        assert_eq!((web.name, web.memory_kib), (None, None));
        assert!(host.find("web").is_err());
        assert_eq!(host.find("drv").unwrap().domid, DomId(2));
    }

    #[test]
    fn devices_have_their_backends_domain_and_kind() {
        let store = store();
        let listed = |own, kind| -> Vec<_> {
            let devices = host(&store, own).devices(DomId(3), kind).unwrap();
            devices.into_iter().map(|d| (d.id, d.backend_domid.0, d.backend_kind)).collect()
        };
        let all = [(768, 2, "vbd".into()), (51712, 0, "vbd".into()), (51728, 0, "qdisk".into())];
        assert_eq!(listed(0, "vbd"), all);
        assert!(listed(0, "vif").is_empty());
        assert_eq!(listed(2, "vbd"), all[..1], "a driver domain sees its own");
    }
}
