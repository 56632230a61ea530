//! How a broker is configured, and what it tells its owner.

use super::answer::StoreLease;
use nix::unistd::Uid;
use ring_abi::DomId;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;

/// An event of a domain, for the store and the toolstack.
#[derive(Debug)]
pub enum DomainEvent {
    /// A domain opened a connection to the store; dropping the stream refuses it.
    Connect {
        /// The domain, as authenticated by the broker.
        domid: DomId,
        /// The store's end.
        stream: UnixStream,
        /// Dropped by the store once the connection is closed: the broker bounds a guest's open connections.
        lease: StoreLease,
    },
    /// A domain's process has exited: its watches, transactions and connections are to be released.
    Exited {
        /// The domain.
        domid: DomId,
    },
}

/// The callback for [`DomainEvent`]s. The broker's thread calls it in order of the events; it must not block.
pub type DomainEvents = Box<dyn FnMut(DomainEvent) + Send>;

/// Asked by a broker that could take over from one that was killed: whether it may, as the store's part is there too, say. The
/// directory is locked meanwhile.
pub type MayTakeOver = Box<dyn FnOnce() -> bool>;

/// The configuration of a broker.
pub struct BrokerConfig {
    /// The directory of its socket; created if missing.
    pub dir: PathBuf,
    /// Users who may create, destroy and list domains. Default: this process's user and root.
    pub control_uids: Vec<u32>,
    /// Users who may join as domain 0. Default: this process's user and root.
    pub dom0_uids: Vec<u32>,
    /// Whether processes of other users may connect (each is authenticated by SO_PEERCRED in any case).
    pub everyone: bool,
    /// Receives connections to the store; `None` if the machine has no store.
    pub domain_events: Option<DomainEvents>,
    /// `None`: members end with the broker. Otherwise it keeps in its directory what a successor needs to go on with them if it
    /// is killed, and takes over from such a predecessor itself if it may.
    pub succession: Option<MayTakeOver>,
}

impl BrokerConfig {
    /// The defaults: only processes of this user may connect, and there is no store.
    pub fn new(dir: impl Into<PathBuf>) -> Self {
        let uids = vec![Uid::effective().as_raw(), 0];
        Self {
            dir: dir.into(),
            control_uids: uids.clone(),
            dom0_uids: uids,
            everyone: false,
            domain_events: None,
            succession: None,
        }
    }
}
