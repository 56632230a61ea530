//! A domain: the hypervisor as one process or thread sees it.

use super::arena::Arena;
use super::channel::LocalChannel;
use super::copy;
use super::events::EventPipes;
use super::layout::Layout;
use super::own_arena::OwnArena;
use super::peer_slot::{Pages, PeerSlot};
use super::peer_slots::PeerSlots;
use super::session::Session;
use super::wire::{Reply, Request};
use crate::{
    AcceptTransfer, Access, Channel, Contiguous, CopyOp, CopyPtr, DomId, Error, EventPort, GrantRef,
    Hypervisor, Mapping, OwnedPage, Result, Shared, Stream, TransferOp,
};
use nix::sys::signal::{SigHandler, Signal};
use std::collections::HashMap;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::{Arc, Mutex};

/// What a domain may choose.
#[derive(Clone, Copy, Debug)]
pub struct Options {
    /// Pages of each arena: a power of two from 64 to 1,048,576. They cost memory only once touched.
    pub arena_pages: u32,
}

impl Default for Options {
    /// 64 MiB of address space a peer.
    fn default() -> Self {
        Self { arena_pages: 16 << 10 }
    }
}

/// This process's membership as a domain; alive until it and everything made by it is dropped.
pub struct Domain {
    session: Arc<Session>,
    layout: Layout,
    owners: Mutex<HashMap<DomId, Arc<OwnArena>>>,
    peers: PeerSlots,
}

impl Domain {
    /// Joins the machine whose broker listens in `dir`, as domain `domid`.
    ///
    /// From then on the process ignores SIGPIPE, unless it handles it: a peer's death must not be ours.
    ///
    /// # Errors
    /// [`Error::Denied`] where the broker does not allow this user to be that domain, or another process is;
    /// [`Error::NoSuchDomain`]; [`Error::Io`] where no broker listens.
    pub fn join(dir: impl AsRef<Path>, domid: DomId) -> Result<Self> {
        Self::join_with(dir, domid, Options::default())
    }

    /// As [`Domain::join`], with other options.
    ///
    /// # Errors
    /// As [`Domain::join`], and [`Error::NoSpace`] where arenas cannot have that size.
    pub fn join_with(dir: impl AsRef<Path>, domid: DomId, options: Options) -> Result<Self> {
        let layout = Layout::new(options.arena_pages).ok_or(Error::NoSpace("arenas of that size"))?;
        ignore_sigpipe()?;
        let session = Arc::new(Session::join(dir.as_ref(), domid)?);
        let peers = PeerSlots::new(session.clone());
        Ok(Self { session, layout, owners: Mutex::default(), peers })
    }

    /// Pages and references that were granted to `peer`, ended, and are still mapped by it.
    pub fn quarantined(&self, peer: DomId) -> usize {
        self.owners().get(&peer).map_or(0, |owner| owner.quarantined())
    }

    fn owners(&self) -> std::sync::MutexGuard<'_, HashMap<DomId, Arc<OwnArena>>> {
        self.owners.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    /// Our arena for `peer`, which is made and told to the broker when it is first needed.
    fn owner(&self, peer: DomId) -> Result<Arc<OwnArena>> {
        let mut owners = self.owners();
        if let Some(owner) = owners.get(&peer).filter(|owner| !owner.arena.is_retired()) {
            return Ok(owner.clone());
        }
        let owner = Arc::new(OwnArena::new(self.layout, peer, self.session.clone())?);
        let offer = Request::Offer { peer, pages: self.layout.pages() };
        self.session.call(&offer, Some(owner.arena.fd()), peer)?;
        owners.insert(peer, owner.clone());
        Ok(owner)
    }

    #[inline]
    fn slot(&self, peer: DomId) -> Result<&Arc<PeerSlot>> {
        self.peers.slot(peer).ok_or(Error::NoSuchDomain(peer))
    }

    /// Does something with the arena of a peer for us, which the broker is asked for the first time and after the
    /// peer's death. `act` gives `None` where there is no live arena.
    #[inline]
    fn with<T>(&self, slot: &PeerSlot, mut act: impl FnMut() -> Option<T>) -> Result<T> {
        if let Some(done) = act() {
            return Ok(done);
        }
        self.fetch(slot)?;
        act().ok_or(Error::NoSuchDomain(slot.owner))
    }

    #[cold]
    fn fetch(&self, slot: &PeerSlot) -> Result<()> {
        // Two threads must not map one arena twice: pins are counted per mapping of it.
        let _one_at_a_time = self.owners();
        if slot.is_live() {
            return Ok(());
        }
        self.peers.tidy();
        let (reply, fds) = self.session.call(&Request::Fetch(slot.owner), None, slot.owner)?;
        let (Reply::Arena(pages), Ok([fd])) = (reply, <[OwnedFd; 1]>::try_from(fds)) else {
            return Err(Error::Protocol("the broker sent no arena".into()));
        };
        let layout = Layout::new(pages).ok_or_else(|| Error::Protocol("an arena of a wrong size".into()))?;
        slot.put(Arena::open(fd, layout)?, self.session.domid())
    }

    fn channel(&self, request: &Request, peer: DomId) -> Result<Box<dyn Channel>> {
        let (reply, fds) = self.session.call(request, None, peer)?;
        match (reply, <[OwnedFd; 2]>::try_from(fds)) {
            (Reply::Port(port), Ok([incoming, outgoing])) => {
                let events = EventPipes { incoming, outgoing };
                Ok(Box::new(LocalChannel { port, events, session: self.session.clone() }))
            }
            _ => Err(Error::Protocol("the broker sent no event channel".into())),
        }
    }
}

impl Hypervisor for Domain {
    fn domid(&self) -> DomId {
        self.session.domid()
    }

    fn share(&self, peer: DomId, pages: usize, access: Access) -> Result<Shared> {
        self.owner(peer)?.share(pages, access)
    }

    fn map(&self, peer: DomId, refs: &[GrantRef], access: Access) -> Result<Mapping> {
        let (slot, mut pages) = (self.slot(peer)?, Pages::new());
        self.with(slot, || slot.pin(refs, access, &mut pages)).map_err(|e| about(e, refs))??;
        Ok(slot.mapping(pages, access))
    }

    fn map_contiguous(&self, peer: DomId, refs: &[GrantRef], access: Access) -> Result<Contiguous> {
        self.slot(peer)?.line_up(self.map(peer, refs, access)?)
    }

    fn copy(&self, ops: &mut [CopyOp<'_>]) -> Result<()> {
        let mut last = None;
        for place in ops.iter().flat_map(|op| [&op.source, &op.dest]) {
            let CopyPtr::Grant { domid, .. } = place else { continue };
            if last != Some(*domid) {
                last = Some(*domid);
                let owner = if *domid == DomId::SELF { self.domid() } else { *domid };
                // Whoever cannot be found fails its own operations only.
                let _ = self.slot(owner).and_then(|slot| self.with(slot, || slot.is_live().then_some(())));
            }
        }
        copy::copy(&self.peers, self.domid(), ops);
        Ok(())
    }

    fn transfer(&self, ops: &mut [TransferOp]) -> Result<()> {
        for op in ops {
            let transfer = |slot: &PeerSlot| Some(slot.lock().live()?.transfer(op.frame, op.gref));
            let done = self.slot(op.domid).and_then(|slot| self.with(slot, || transfer(slot)));
            op.status = done.map_or(copy::BAD_DOMAIN, |done| done.map_or_else(|status| status, |()| 0));
        }
        Ok(())
    }

    fn balloon_out(&self, peer: DomId, pages: usize) -> Result<usize> {
        Ok(self.owner(peer)?.balloon_out(pages))
    }

    fn balloon_in(&self, peer: DomId) -> Result<usize> {
        Ok(self.owner(peer)?.balloon_in())
    }

    fn populate(&self, peer: DomId, pages: usize, into: &mut Vec<OwnedPage>) -> Result<()> {
        let slot = self.slot(peer)?;
        self.with(slot, || slot.populate(pages, into))
    }

    fn accept_transfer(&self, peer: DomId, entries: usize) -> Result<Box<dyn AcceptTransfer>> {
        self.owner(peer)?.accept_transfer(entries)
    }

    fn alloc_unbound(&self, peer: DomId) -> Result<Box<dyn Channel>> {
        self.channel(&Request::Listen(peer), peer)
    }

    fn bind_interdomain(&self, peer: DomId, port: EventPort) -> Result<Box<dyn Channel>> {
        self.channel(&Request::Connect { peer, port }, peer).map_err(|error| match error {
            Error::NoSuchPort { peer, .. } => Error::NoSuchPort { peer, port },
            other => other,
        })
    }

    fn store(&self) -> Result<Box<dyn Stream>> {
        let (_, fds) = self.session.call(&Request::Store, None, DomId::DOM0)?;
        let [fd] = <[OwnedFd; 1]>::try_from(fds)
            .map_err(|_| Error::Protocol("the broker sent no connection to the store".into()))?;
        Ok(Box::new(UnixStream::from(fd)))
    }
}

impl std::fmt::Debug for Domain {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Domain({})", self.domid())
    }
}

/// An error of mapping `refs` names the first where the peer shares nothing at all.
fn about(error: Error, refs: &[GrantRef]) -> Error {
    match error {
        Error::Grant { peer, status, .. } => {
            Error::Grant { peer, gref: refs.first().copied().unwrap_or_default(), status }
        }
        other => other,
    }
}

/// Rust programs ignore SIGPIPE from their start; some set it back so that `| head` ends them.
#[allow(unsafe_code)] // Signal dispositions are process-wide.
fn ignore_sigpipe() -> Result<()> {
    // SAFETY: sets no handler of ours.
    let before = unsafe { nix::sys::signal::signal(Signal::SIGPIPE, SigHandler::SigIgn) };
    match before.map_err(|e| Error::io("ignore SIGPIPE", e))? {
        SigHandler::SigDfl | SigHandler::SigIgn => Ok(()),
        // SAFETY: the handler that was there a moment ago.
        handler => unsafe { nix::sys::signal::signal(Signal::SIGPIPE, handler) }
            .map(|_| ())
            .map_err(|e| Error::io("restore SIGPIPE's handler", e)),
    }
}
