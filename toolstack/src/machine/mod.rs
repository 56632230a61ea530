//! A running machine, as the toolstack works on it: the broker's domains and the store's nodes.

pub mod device;
pub mod domain;
pub mod guest;
pub mod host;
pub mod process;
pub mod progress;
pub mod vbd;
pub mod vif;

use hypervisor::local::{Control, DomainInfo};
use xenstore::{Client, Nodes};

use crate::dir::Dir;
use crate::error::{Error, Result};

/// How long the store may take to answer before a command gives up, in seconds.
const PATIENCE: std::time::Duration = std::time::Duration::from_secs(30);

/// A machine.
pub struct Machine {
    /// Where it is.
    pub dir: Dir,
    /// Its store, as dom0.
    pub store: Client,
    /// Its broker.
    pub control: Control,
}

impl Machine {
    /// The machine that runs in a directory.
    ///
    /// # Errors
    /// None does.
    pub fn connect(dir: &Dir) -> Result<Machine> {
        let none = |why: String| {
            let at = dir.path().display();
            Error::Other(format!(
                "no machine runs in {at} (start one with `xpv up` or `xpv hypervisor`): {why}"
            ))
        };
        let control = Control::connect(dir.path()).map_err(|e| none(e.to_string()))?;
        let mut store = Client::open_unix(dir.store()).map_err(|e| none(e.to_string()))?;
        store.set_reply_timeout(Some(PATIENCE));
        Ok(Machine { dir: dir.clone(), store, control })
    }

    /// Every domain, in the order of their numbers.
    ///
    /// # Errors
    /// The broker's.
    pub fn domains(&self) -> Result<Vec<DomainInfo>> {
        Ok(self.control.list()?)
    }

    /// The domain of this name or number.
    ///
    /// # Errors
    /// There is none.
    pub fn find(&self, who: &str) -> Result<DomainInfo> {
        let number = who.parse::<u16>().ok();
        let found = self.domains()?.into_iter().find(|d| d.name == who || Some(d.domid.0) == number);
        found.ok_or_else(|| Error::Other(format!("there is no domain {who:?} (see `xpv list`)")))
    }

    /// As [`Machine::find`], but dom0 is none.
    ///
    /// # Errors
    /// There is none, or it is dom0.
    pub fn find_guest(&self, who: &str) -> Result<DomainInfo> {
        let domain = self.find(who)?;
        if domain.domid.0 == 0 {
            return Err(Error::other("Domain-0 is not a guest"));
        }
        Ok(domain)
    }

    /// Sees that somebody serves devices.
    ///
    /// # Errors
    /// Nobody does.
    pub fn need_dom0(&self) -> Result<()> {
        match self.domains()?.iter().any(|d| d.domid.0 == 0 && d.pid.is_some()) {
            true => Ok(()),
            false => Err(Error::other("dom0 is not running (start it with `xpv dom0`)")),
        }
    }

    /// The names of dom0's bridges.
    ///
    /// # Errors
    /// The store's.
    pub fn bridges(&mut self) -> Result<Vec<String>> {
        match self.store.directory(BRIDGES) {
            Err(e) if e.is_not_found() => Ok(Vec::new()),
            names => Ok(names?),
        }
    }

    /// Writes the names of dom0's bridges for [`Machine::bridges`].
    ///
    /// # Errors
    /// The store's.
    pub fn publish_bridges<'n>(
        client: &mut Client,
        names: impl Iterator<Item = &'n str> + Clone,
    ) -> Result<()> {
        Ok(client.transaction(|tx| {
            device::remove_tree(tx, BRIDGES)?;
            tx.mkdir(BRIDGES)?;
            names.clone().try_for_each(|name| tx.mkdir(&format!("{BRIDGES}/{name}")))
        })?)
    }
}

/// Where dom0 says which bridges it has; a key of this program's own.
const BRIDGES: &str = "/tool/xpv/bridges";
