//! Where guests and their devices are listed: a local machine, or the Xen host that this program runs on.

use hypervisor::xen::XenStore;
use ring_abi::netif::{Mac, key};
use xenstore::{Client, DomId};

use super::listed_device::ListedDevice;
use super::xen_host::XenHost;
use super::{Machine, device};
use crate::dir::Dir;
use crate::error::{Error, Result};

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
    /// [`Error::Other`] if there is none.
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

    /// Finds a domain's network interface by its number or its MAC address.
    ///
    /// # Errors
    /// [`Error::Other`] if there is none.
    pub fn find_vif(&mut self, domain: &ListedDomain, number_or_mac: &str) -> Result<ListedDevice> {
        let number = number_or_mac.parse::<u32>().ok();
        let mac = number_or_mac.parse::<Mac>().ok().map(|mac| mac.to_string());
        for device in self.devices(domain.domid, "vif")? {
            let its_mac = device.key(self.store(), key::MAC)?;
            if number == Some(device.id) || mac.is_some() && mac == its_mac {
                return Ok(device);
            }
        }
        Err(Error::Other(format!("{} has no vif {number_or_mac}", domain.name)))
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
