//! A real Xen host, through Linux's device nodes `/dev/xen/{gntdev,gntalloc,evtchn,xenbus}`.
//!
//! It needs the modules xen-gntdev, xen-gntalloc and xen-evtchn, and permission to open the nodes. Xen and Linux do
//! not offer a program: page transfer ([`grant_table::PageDonor`]); notice that the other end of an event channel is
//! closed ([`event_channel::Error::Closed`] is never returned; the xenbus state in the store shows it); notice that a
//! peer still has a granted page mapped (the kernel quarantines such pages silently).

mod abi;
mod evtchn;
mod gntalloc;
mod gntdev;
mod grant_copy;
mod node;
mod region;
mod xenbus;

use crate::error::Result;
use event_channel::{EventChannels, WaitChannel};
use event_loop::{Connector, Stream};
use evtchn::Evtchn;
use grant_table::{Access, Contiguous, CopyOp, GrantTable, Mapping, Shared};
use ring_abi::{DomId, EventPort, GrantRef};
use std::io;
use std::sync::{Arc, OnceLock};

/// The ioctls of the device nodes that are used, for filters of system calls.
pub const IOCTLS: [u64; 8] = [
    abi::GNTDEV_MAP,
    abi::GNTDEV_UNMAP,
    abi::GNTDEV_COPY,
    abi::GNTALLOC_ALLOC,
    abi::GNTALLOC_DEALLOC,
    abi::EVTCHN_BIND_INTERDOMAIN,
    abi::EVTCHN_BIND_UNBOUND,
    abi::EVTCHN_NOTIFY,
];

/// The Xen host that this program runs on, as the domain it runs in.
#[derive(Debug)]
pub struct Xen {
    domid: DomId,
    gntdev: Arc<gntdev::Gntdev>,
    // Opened on first use: backends never share pages, and do not need xen-gntalloc.
    gntalloc: OnceLock<Arc<gntalloc::Gntalloc>>,
}

impl Xen {
    /// Opens the device nodes, and reads this domain's number from the store.
    ///
    /// # Errors
    /// [`Error::Io`](crate::Error::Io) where a node is missing or may not be opened; [`Error::Protocol`](crate::Error::Protocol) where the store has no number
    /// for this domain, as in dom0 before the toolstack's `xen-init-dom0` ran.
    pub fn open() -> Result<Self> {
        let gntdev = gntdev::Gntdev::open()?;
        Ok(Self { domid: xenbus::own_domid()?, gntdev, gntalloc: OnceLock::new() })
    }

    /// The most pages that all processes of this domain together may grant at a time: the parameter `limit` of the module
    /// xen-gntalloc, or what it is without one.
    pub fn max_granted_pages() -> usize {
        gntalloc::limit()
    }

    fn gntalloc(&self) -> Result<&Arc<gntalloc::Gntalloc>> {
        if let Some(open) = self.gntalloc.get() {
            return Ok(open);
        }
        let opened = gntalloc::Gntalloc::open()?;
        Ok(self.gntalloc.get_or_init(|| opened))
    }
}

impl GrantTable for Xen {
    fn domid(&self) -> DomId {
        self.domid
    }

    fn share(&self, peer: DomId, pages: usize, access: Access) -> grant_table::Result<Shared> {
        Ok(self.gntalloc()?.share(peer, pages, access)?)
    }

    fn map(&self, peer: DomId, refs: &[GrantRef], access: Access) -> grant_table::Result<Mapping> {
        Ok(self.gntdev.map(peer, refs, access)?)
    }

    fn map_contiguous(
        &self,
        peer: DomId,
        refs: &[GrantRef],
        access: Access,
    ) -> grant_table::Result<Contiguous> {
        // One mmap gives consecutive addresses, so this fails only without pages.
        let mapping = self.gntdev.map(peer, refs, access)?;
        Contiguous::new(mapping).ok_or(grant_table::Error::NoSpace("a mapping of no pages"))
    }

    fn maps_for_io(&self) -> bool {
        false
    }

    fn copy(&self, ops: &mut [CopyOp<'_>]) -> grant_table::Result<()> {
        Ok(self.gntdev.copy(ops)?)
    }

    /// One with its own descriptor of gntdev.
    fn for_device(&self) -> grant_table::Result<Option<Arc<dyn GrantTable>>> {
        let gntdev = gntdev::Gntdev::open()?;
        Ok(Some(Arc::new(Self { domid: self.domid, gntdev, gntalloc: OnceLock::new() })))
    }
}

impl EventChannels for Xen {
    type Channel = Box<dyn WaitChannel>;

    fn alloc_unbound(&self, peer: DomId) -> event_channel::Result<Box<dyn WaitChannel>> {
        Ok(Box::new(Evtchn::alloc_unbound(peer)?))
    }

    fn bind_interdomain(&self, peer: DomId, port: EventPort) -> event_channel::Result<Box<dyn WaitChannel>> {
        Ok(Box::new(Evtchn::bind_interdomain(peer, port)?))
    }
}

impl Connector for Xen {
    /// Connects to the store, through the kernel.
    fn connect(&self) -> io::Result<Box<dyn Stream>> {
        XenStore.connect()
    }
}

/// The store of the Xen host that this program runs on, for programs that need nothing else of it.
#[derive(Clone, Copy, Debug)]
pub struct XenStore;

impl XenStore {
    /// Whether this program runs in a domain of a Xen host, whose kernel gives access to the store.
    pub fn is_present() -> bool {
        std::path::Path::new("/dev/xen/xenbus").exists()
    }
}

impl Connector for XenStore {
    /// Connects to the store, through the kernel.
    fn connect(&self) -> io::Result<Box<dyn Stream>> {
        Ok(xenbus::connect()?)
    }
}
