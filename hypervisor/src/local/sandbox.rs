//! A machine for tests, benchmarks and development: a broker in a temporary directory.

use super::broker::Broker;
use super::broker_config::{BrokerConfig, DomainEvents};
use super::control::Control;
use super::domain::{Domain, Options};
use crate::{Error, Result};
use ring_abi::DomId;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// A broker and its directory, which is removed on drop.
///
/// ```
/// use grant_table::GrantTable;
/// use hypervisor::local::Sandbox;
/// use ring_abi::DomId;
///
/// let sandbox = Sandbox::new()?;
/// let guest = sandbox.join(DomId(1))?;
/// assert_eq!(guest.domid(), DomId(1));
/// # Ok::<(), hypervisor::Error>(())
/// ```
#[derive(Debug)]
pub struct Sandbox {
    control: Control,
    _broker: Broker,
    dir: Directory,
}

impl Sandbox {
    /// Starts a machine with domain 0 and no store.
    ///
    /// # Errors
    /// [`Error::Io`] if the directory or the broker cannot be created.
    pub fn new() -> Result<Self> {
        Self::start(None)
    }

    /// Starts a machine whose connections to the store go to `domain_events`.
    ///
    /// # Errors
    /// As [`Sandbox::new`].
    pub fn with_store(domain_events: DomainEvents) -> Result<Self> {
        Self::start(Some(domain_events))
    }

    fn start(domain_events: Option<DomainEvents>) -> Result<Self> {
        let template = std::env::temp_dir().join("xpv-XXXXXX");
        let dir =
            nix::unistd::mkdtemp(&template).map_err(|e| Error::io("create a temporary directory", e))?;
        let dir = Directory(dir);
        let broker = Broker::spawn(BrokerConfig { domain_events, ..BrokerConfig::new(&dir.0) })?;
        Ok(Self { control: Control::connect(&dir.0)?, _broker: broker, dir })
    }

    /// The directory in which the broker listens.
    pub fn dir(&self) -> &Path {
        &self.dir.0
    }

    /// A control connection to the broker.
    pub fn control(&self) -> &Control {
        &self.control
    }

    /// Joins as a domain, which is created if it does not exist.
    ///
    /// # Errors
    /// As [`Domain::join`].
    pub fn join(&self, domid: DomId) -> Result<Arc<Domain>> {
        self.join_with(domid, Options::default())
    }

    /// Joins as [`Sandbox::join`] does, with `options`.
    ///
    /// # Errors
    /// As [`Domain::join_with`].
    pub fn join_with(&self, domid: DomId, options: Options) -> Result<Arc<Domain>> {
        if self.control.get(domid).is_err() {
            let uid = nix::unistd::Uid::effective().as_raw();
            self.control.create(&format!("guest-{domid}"), uid, Some(domid))?;
        }
        Domain::join_with(&self.dir.0, domid, options).map(Arc::new)
    }
}

/// A directory that is removed with its contents on drop.
#[derive(Debug)]
struct Directory(PathBuf);

impl Drop for Directory {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}
