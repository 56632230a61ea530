//! The toolstack's side of a running machine: the broker's domains and the store's nodes.

pub mod attached;
pub mod device;
pub mod domain;
pub mod guest;
pub mod host;
pub mod listed_device;
pub mod listing;
pub mod process;
pub mod progress;
pub mod vbd;
pub mod vif;
pub mod xen_host;

use std::collections::BTreeMap;
use std::io::ErrorKind;
use std::time::{Duration, Instant};

use hypervisor::local::{Control, DomainInfo};
use hypervisor::xen::XenStore;
use ring_abi::xs_wire::MessageType;
use xenstore::{Client, Nodes};

use crate::dir::Dir;
use crate::error::{Error, Result, chain};

/// How long a command waits for a reply of the store.
const STORE_TIMEOUT: Duration = Duration::from_secs(30);
/// How long a command waits for a dom0 that is starting.
const DOM0_STARTS: Duration = Duration::from_secs(2);
const POLL_INTERVAL: Duration = Duration::from_millis(5);

/// Connections to a running machine.
pub struct Machine {
    /// The machine's directory.
    pub dir: Dir,
    /// A connection to the store, as dom0.
    pub store: Client,
    /// A connection to the broker.
    pub control: Control,
}

impl Machine {
    /// Connects to the machine that runs in a directory.
    ///
    /// # Errors
    /// [`Error::Other`] if none runs there.
    pub fn connect(dir: &Dir) -> Result<Machine> {
        let not_running = |error: &dyn std::error::Error| {
            let at = dir.path().display();
            let hint = match XenStore::is_present() {
                true => "on a Xen host devices are attached and domains created by xl",
                false => "start one with `xpv up` or `xpv hypervisor`",
            };
            Error::Other(format!("no machine runs in {at} ({hint}): {}", chain(error)))
        };
        let control = Control::connect(dir.path()).map_err(|e| match e {
            hypervisor::Error::Io { error, .. } if error.kind() == ErrorKind::WouldBlock => Error::Other(format!(
                "the hypervisor of the machine in {} does not answer: is it stopped, or out of file descriptors?",
                dir.path().display()
            )),
            e => not_running(&e),
        })?;
        let mut store = Client::open_unix(dir.store()).map_err(|e| not_running(&e))?;
        store.set_reply_timeout(Some(STORE_TIMEOUT));
        Ok(Machine { dir: dir.clone(), store, control })
    }

    /// Whether a machine runs in a directory, or ran there until it was killed.
    pub fn is_present(dir: &Dir) -> bool {
        dir.store().exists()
    }

    /// Lists the domains in the order of their ids.
    pub fn domains(&self) -> Result<Vec<DomainInfo>> {
        Ok(self.control.list()?)
    }

    /// The longest turn of the store's and of the broker's loop so far, in microseconds of their threads' processor time.
    ///
    /// # Errors
    /// One of them does not answer.
    pub fn longest_turns(&mut self) -> Result<BTreeMap<String, u64>> {
        let told = self.store.request(MessageType::Control, "", b"longest-turn\0")?;
        let told = String::from_utf8_lossy(&told);
        let store = told
            .trim_end_matches('\0')
            .parse()
            .map_err(|_| Error::Other(format!("longest-turn: the store told {told:?}, expected a number")))?;
        let broker = self.control.longest_turn()?.as_micros() as u64;
        Ok(BTreeMap::from([("store".to_owned(), store), ("broker".to_owned(), broker)]))
    }

    /// Finds the domain of this name or id.
    ///
    /// # Errors
    /// [`Error::Other`] if there is none.
    pub fn find(&self, name_or_id: &str) -> Result<DomainInfo> {
        let number = name_or_id.parse::<u16>().ok();
        let found = self.domains()?.into_iter().find(|d| d.name == name_or_id || Some(d.domid.0) == number);
        found.ok_or_else(|| Error::Other(format!("there is no domain {name_or_id:?} (see `xpv list`)")))
    }

    /// Finds the domain of this name or id, which must not be dom0.
    ///
    /// # Errors
    /// [`Error::Other`] if there is none, or it is dom0.
    pub fn find_guest(&self, name_or_id: &str) -> Result<DomainInfo> {
        let domain = self.find(name_or_id)?;
        if domain.domid.0 == 0 {
            return Err(Error::other("Domain-0 is not a guest"));
        }
        Ok(domain)
    }

    /// Checks that dom0 is running, which serves devices.
    ///
    /// # Errors
    /// [`Error::Other`] if it is not.
    pub fn require_dom0(&self) -> Result<()> {
        match self.domains()?.iter().any(|d| d.domid.0 == 0 && d.pid.is_some()) {
            true => Ok(()),
            false => Err(Error::other("dom0 is not running (start it with `xpv dom0`)")),
        }
    }

    /// Waits for dom0, which may be starting, or be started again after it was killed.
    ///
    /// # Errors
    /// [`Error::Other`] if it does not run within [`DOM0_STARTS`].
    pub fn await_dom0(&self) -> Result<()> {
        let deadline = Instant::now() + DOM0_STARTS;
        while Instant::now() < deadline {
            if self.require_dom0().is_ok() {
                return Ok(());
            }
            std::thread::park_timeout(POLL_INTERVAL);
        }
        self.require_dom0()
    }

    /// Reads the names of dom0's bridges.
    pub fn bridges(&mut self) -> Result<Vec<String>> {
        match self.store.directory(BRIDGES) {
            Err(e) if e.is_not_found() => Ok(Vec::new()),
            names => Ok(names?),
        }
    }

    /// Writes the names of dom0's bridges, for [`Machine::bridges`].
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

/// The node in which dom0 publishes its bridges; it is private to this program.
const BRIDGES: &str = "/tool/xpv/bridges";
