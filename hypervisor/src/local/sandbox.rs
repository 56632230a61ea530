//! A machine for tests, benchmarks and development: a broker in a directory of its own, gone when it is dropped.

use super::broker::{Broker, BrokerConfig, DomainEvents};
use super::control::Control;
use super::domain::{Domain, Options};
use crate::{DomId, Error, Result};
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// A broker and its directory.
#[derive(Debug)]
pub struct Sandbox {
    control: Control,
    _broker: Broker,
    dir: Directory,
}

impl Sandbox {
    /// A machine with domain 0 and no store.
    ///
    /// # Errors
    /// The system's.
    pub fn new() -> Result<Self> {
        Self::start(None)
    }

    /// A machine whose store is told by `domain_events` of connections.
    ///
    /// # Errors
    /// The system's.
    pub fn with_store(domain_events: DomainEvents) -> Result<Self> {
        Self::start(Some(domain_events))
    }

    fn start(domain_events: Option<DomainEvents>) -> Result<Self> {
        let template = std::env::temp_dir().join("xpv-XXXXXX");
        let dir = nix::unistd::mkdtemp(&template).map_err(|e| Error::io("make a directory", e))?;
        let dir = Directory(dir);
        let broker = Broker::spawn(BrokerConfig { domain_events, ..BrokerConfig::new(&dir.0) })?;
        Ok(Self { control: Control::connect(&dir.0)?, _broker: broker, dir })
    }

    /// Where its broker listens.
    pub fn dir(&self) -> &Path {
        &self.dir.0
    }

    /// Control over its domains.
    pub fn control(&self) -> &Control {
        &self.control
    }

    /// Joins as this domain, which is created if it is not there.
    ///
    /// # Errors
    /// As [`Domain::join`].
    pub fn join(&self, domid: DomId) -> Result<Arc<Domain>> {
        self.join_with(domid, Options::default())
    }

    /// As [`Sandbox::join`], with other options.
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

/// A directory that is removed with what is in it.
#[derive(Debug)]
struct Directory(PathBuf);

impl Drop for Directory {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}
