//! A real Xen host, through Linux's device nodes `/dev/xen/{gntdev,gntalloc,evtchn,xenbus}`.
//!
//! It needs the modules xen-gntdev, xen-gntalloc and xen-evtchn, and permission to open the nodes. Xen and Linux do
//! not offer a program: page transfer ([`Hypervisor::transfer`] is unsupported); notice that the other end of an
//! event channel is closed ([`Channel::notify`] and [`Channel::take`] never return [`Error::Closed`]; the xenbus
//! state in the store shows it); notice that a peer still has a granted page mapped (the kernel quarantines such
//! pages silently).

mod abi;
mod evtchn;
mod gntalloc;
mod gntdev;
mod grant_copy;
mod node;
mod region;
mod xenbus;

use crate::error::{Error, Result};
use crate::{
    Access, Channel, Contiguous, CopyOp, DomId, EventPort, GrantRef, Hypervisor, Mapping, Shared, Stream,
};
use std::sync::{Arc, OnceLock};

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
    /// [`Error::Io`] where a node is missing or may not be opened; [`Error::Protocol`] where the store has no number
    /// for this domain, as in dom0 before the toolstack's `xen-init-dom0` ran.
    pub fn open() -> Result<Self> {
        let gntdev = gntdev::Gntdev::open()?;
        Ok(Self { domid: xenbus::own_domid()?, gntdev, gntalloc: OnceLock::new() })
    }

    fn gntalloc(&self) -> Result<&Arc<gntalloc::Gntalloc>> {
        if let Some(open) = self.gntalloc.get() {
            return Ok(open);
        }
        let opened = gntalloc::Gntalloc::open()?;
        Ok(self.gntalloc.get_or_init(|| opened))
    }
}

impl Hypervisor for Xen {
    fn domid(&self) -> DomId {
        self.domid
    }

    fn share(&self, peer: DomId, pages: usize, access: Access) -> Result<Shared> {
        self.gntalloc()?.share(peer, pages, access)
    }

    fn map(&self, peer: DomId, refs: &[GrantRef], access: Access) -> Result<Mapping> {
        self.gntdev.map(peer, refs, access)
    }

    /// gntdev needs four system calls for a map and its unmap.
    fn map_is_expensive(&self) -> bool {
        true
    }

    fn map_contiguous(&self, peer: DomId, refs: &[GrantRef], access: Access) -> Result<Contiguous> {
        // One mmap gives consecutive addresses, so this fails only without pages.
        Contiguous::new(self.gntdev.map(peer, refs, access)?).ok_or(Error::NoSpace("a mapping of no pages"))
    }

    fn copy(&self, ops: &mut [CopyOp<'_>]) -> Result<()> {
        self.gntdev.copy(ops)
    }

    fn alloc_unbound(&self, peer: DomId) -> Result<Box<dyn Channel>> {
        Ok(Box::new(evtchn::Evtchn::alloc_unbound(peer)?))
    }

    fn bind_interdomain(&self, peer: DomId, port: EventPort) -> Result<Box<dyn Channel>> {
        Ok(Box::new(evtchn::Evtchn::bind_interdomain(peer, port)?))
    }

    fn store(&self) -> Result<Box<dyn Stream>> {
        xenbus::connect()
    }
}
