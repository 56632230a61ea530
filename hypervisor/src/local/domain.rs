//! A domain: the local hypervisor as one process, or one thread of it, sees it.

use super::arena::Arena;
use super::channel::LocalChannel;
use super::copy;
use super::events::EventPipes;
use super::follower;
use super::layout::Layout;
use super::membership::Membership;
use super::own_arena::OwnArena;
use super::peer_slot::{Pages, PeerSlot};
use super::peer_slots::PeerSlots;
use super::wire::{Reply, Request};
use crate::{Error, Result};
use event_channel::{EventChannels, WaitChannel};
use event_loop::{Connector, Stream};
use grant_table::{
    AcceptTransfer, Access, Contiguous, CopyOp, CopyPtr, GrantTable, MapOp, Mapping, Mappings, OwnedPage,
    PageAcceptor, PageDonor, Shared, TransferOp,
};
use nix::sys::signal::{SigHandler, Signal};
use ring_abi::grant::Status;
use ring_abi::{DomId, EventPort, GrantRef};
use std::collections::HashMap;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::{Arc, Mutex};

/// Options of a domain.
#[derive(Clone, Copy, Debug)]
pub struct Options {
    /// Pages of each arena: a power of two from 64 to 1,048,576. A page costs memory once it is written.
    pub arena_pages: u32,
}

impl Default for Options {
    /// 64 MiB of address space a peer.
    fn default() -> Self {
        Self { arena_pages: 16 << 10 }
    }
}

/// This process's membership as a domain. It ends when this value and every resource allocated through it is dropped.
pub struct Domain {
    membership: Arc<Membership>,
    layout: Layout,
    own_arenas: Mutex<HashMap<DomId, Arc<OwnArena>>>,
    peers: Arc<PeerSlots>,
}

impl Domain {
    /// Joins as domain `domid` at the broker that listens in `dir`.
    ///
    /// The process ignores SIGPIPE from then on, unless it has a handler for it: writing to an exited peer's event
    /// channel must not kill it.
    ///
    /// # Errors
    /// [`Error::Denied`] where the broker does not allow this user to join as that domain, or another process has;
    /// [`Error::NoSuchDomain`]; [`Error::Io`] where no broker listens.
    pub fn join(dir: impl AsRef<Path>, domid: DomId) -> Result<Self> {
        Self::join_with(dir, domid, Options::default())
    }

    /// Joins as [`Domain::join`] does, with `options`.
    ///
    /// # Errors
    /// As [`Domain::join`], and [`Error::NoSpace`] where arenas cannot have that size.
    pub fn join_with(dir: impl AsRef<Path>, domid: DomId, options: Options) -> Result<Self> {
        let layout = Layout::new(options.arena_pages).ok_or(Error::NoSpace("arenas of that size"))?;
        ignore_sigpipe()?;
        let membership = Arc::new(Membership::join(dir.as_ref(), domid)?);
        let peers = Arc::new(PeerSlots::new(membership.clone()));
        follower::start(&membership, &peers)?;
        Ok(Self { membership, layout, own_arenas: Mutex::default(), peers })
    }

    /// The number of pages in quarantine: their grants to `peer` were ended while `peer` had them mapped.
    pub fn quarantined(&self, peer: DomId) -> usize {
        self.own_arenas().get(&peer).map_or(0, |arena| arena.quarantined())
    }

    /// Takes back all pages that were given up for `peer` and not transferred back; for use after the peer has exited.
    /// Returns how many.
    ///
    /// # Errors
    /// As [`GrantTable::share`].
    pub fn balloon_in(&self, peer: DomId) -> Result<usize> {
        Ok(self.own_arena(peer)?.balloon_in())
    }

    fn own_arenas(&self) -> std::sync::MutexGuard<'_, HashMap<DomId, Arc<OwnArena>>> {
        self.own_arenas.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    /// This domain's arena for `peer`, created and offered to the broker on first use.
    fn own_arena(&self, peer: DomId) -> Result<Arc<OwnArena>> {
        let mut own_arenas = self.own_arenas();
        if let Some(own) = own_arenas.get(&peer).filter(|own| !own.arena.is_retired()) {
            return Ok(own.clone());
        }
        let own = Arc::new(OwnArena::new(self.layout, peer, self.membership.clone())?);
        self.membership.offer(peer, own.arena.fd(), self.layout.pages())?;
        own_arenas.insert(peer, own.clone());
        Ok(own)
    }

    #[inline]
    fn slot(&self, peer: DomId) -> Result<&Arc<PeerSlot>> {
        self.peers.slot(peer).ok_or(Error::NoSuchDomain(peer))
    }

    /// Calls `act`, which returns `None` without a live arena of the peer in `slot`. The arena is then fetched from
    /// the broker, as on first use and after the peer has exited, and `act` called once more.
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
        // No two threads may map one arena twice, as pins are counted per mapping of it.
        let _serialized = self.own_arenas();
        if slot.is_live() {
            return Ok(());
        }
        self.peers.unmap_retired();
        let (reply, fds) = self.membership.call(&Request::Fetch(slot.owner), None, slot.owner)?;
        let (Reply::Arena(pages), Ok([fd])) = (reply, <[OwnedFd; 1]>::try_from(fds)) else {
            return Err(Error::Protocol("the broker sent no arena".into()));
        };
        let layout =
            Layout::new(pages).ok_or_else(|| Error::Protocol("an arena of an invalid size".into()))?;
        slot.put(Arena::open(fd, layout)?, self.membership.domid())
    }

    fn channel(&self, request: &Request, peer: DomId) -> Result<Box<dyn WaitChannel>> {
        let (reply, fds) = self.membership.call(request, None, peer)?;
        match (reply, <[OwnedFd; 2]>::try_from(fds)) {
            (Reply::Port(port), Ok([incoming, outgoing])) => {
                self.membership.keep_port(port);
                let events = EventPipes { incoming, outgoing };
                Ok(Box::new(LocalChannel::new(port, events, self.membership.clone())?))
            }
            _ => Err(Error::Protocol("the broker sent no event channel".into())),
        }
    }
}

impl GrantTable for Domain {
    fn domid(&self) -> DomId {
        self.membership.domid()
    }

    fn share(&self, peer: DomId, pages: usize, access: Access) -> grant_table::Result<Shared> {
        Ok(self.own_arena(peer)?.share(pages, access)?)
    }

    fn map(&self, peer: DomId, refs: &[GrantRef], access: Access) -> grant_table::Result<Mapping> {
        let slot = self.slot(peer)?;
        let mut pages = Pages::new();
        self.with(slot, || slot.pin(refs, access, &mut pages)).map_err(|e| with_reference(e, refs))??;
        Ok(slot.mapping(pages, access))
    }

    fn map_batch(&self, peer: DomId, ops: &[MapOp], mappings: &mut dyn Mappings) -> grant_table::Result<()> {
        let slot = self.slot(peer)?;
        Ok(self.with(slot, || slot.pin_batch(ops, mappings))??)
    }

    fn unmap_batch(&self, peer: DomId, numbers: &[u32], mappings: &mut dyn Mappings) {
        match self.slot(peer) {
            Ok(slot) => slot.unpin_batch(numbers, mappings),
            Err(_) => numbers.iter().for_each(|number| mappings.mapping(*number).unmap()),
        }
    }

    fn map_contiguous(
        &self,
        peer: DomId,
        refs: &[GrantRef],
        access: Access,
    ) -> grant_table::Result<Contiguous> {
        Ok(self.slot(peer)?.make_contiguous(self.map(peer, refs, access)?)?)
    }

    fn copy(&self, ops: &mut [CopyOp<'_>]) -> grant_table::Result<()> {
        let mut last = None;
        for place in ops.iter().flat_map(|op| [&op.source, &op.dest]) {
            let CopyPtr::Grant { domid, .. } = place else { continue };
            if last != Some(*domid) {
                last = Some(*domid);
                let owner = if *domid == DomId::SELF { self.domid() } else { *domid };
                // A domain without an arena fails only its own operations, in `copy` below.
                let _ = self.slot(owner).and_then(|slot| self.with(slot, || slot.is_live().then_some(())));
            }
        }
        copy::copy(&self.peers, self.domid(), ops);
        Ok(())
    }

    fn page_donor(self: Arc<Self>) -> Option<Arc<dyn PageDonor>> {
        Some(self)
    }

    fn page_acceptor(self: Arc<Self>) -> Option<Arc<dyn PageAcceptor>> {
        Some(self)
    }
}

impl PageDonor for Domain {
    fn populate(&self, peer: DomId, pages: usize, into: &mut Vec<OwnedPage>) -> grant_table::Result<()> {
        let slot = self.slot(peer)?;
        Ok(self.with(slot, || slot.populate(pages, into))?)
    }

    fn transfer(&self, ops: &mut [TransferOp]) -> grant_table::Result<()> {
        for to_one in ops.chunk_by_mut(|a, b| a.domid == b.domid) {
            let slot = self.slot(to_one[0].domid);
            let done = slot.and_then(|slot| self.with(slot, || slot.transfer(to_one)));
            if done.is_err() {
                to_one.iter_mut().for_each(|op| op.status = Status::BAD_DOMAIN);
            }
        }
        Ok(())
    }
}

impl PageAcceptor for Domain {
    fn balloon_out(&self, peer: DomId, pages: usize) -> grant_table::Result<usize> {
        Ok(self.own_arena(peer)?.balloon_out(pages))
    }

    fn provide(&self, peer: DomId, entries: usize) -> grant_table::Result<usize> {
        Ok(self.own_arena(peer)?.provide(entries))
    }

    fn accept_transfer(&self, peer: DomId, entries: usize) -> grant_table::Result<Box<dyn AcceptTransfer>> {
        Ok(self.own_arena(peer)?.accept_transfer(entries)?)
    }
}

impl EventChannels for Domain {
    type Channel = Box<dyn WaitChannel>;

    fn alloc_unbound(&self, peer: DomId) -> event_channel::Result<Box<dyn WaitChannel>> {
        Ok(self.channel(&Request::AllocUnbound(peer), peer)?)
    }

    fn bind_interdomain(&self, peer: DomId, port: EventPort) -> event_channel::Result<Box<dyn WaitChannel>> {
        Ok(self.channel(&Request::BindInterdomain { peer, port }, peer).map_err(|error| match error {
            Error::NoSuchPort { peer, .. } => Error::NoSuchPort { peer, port },
            other => other,
        })?)
    }
}

impl Connector for Domain {
    /// Connects to the store: the broker passes a socket. Fails with ConnectionRefused at once while the broker is being
    /// restarted.
    fn connect(&self) -> io::Result<Box<dyn Stream>> {
        let (_, fds) = self.membership.call_now(&Request::Store, DomId::DOM0)?;
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

/// Fills in the first of `refs` where the peer has no arena for this domain: the broker does not know the reference.
fn with_reference(error: Error, refs: &[GrantRef]) -> Error {
    match error {
        Error::Grant { peer, status, .. } => {
            Error::Grant { peer, gref: refs.first().copied().unwrap_or_default(), status }
        }
        other => other,
    }
}

/// Ignores SIGPIPE unless it has a handler. Rust programs start so, but some restore the default for use in
/// pipelines.
#[allow(unsafe_code)] // Signal dispositions are process-wide.
fn ignore_sigpipe() -> Result<()> {
    // SAFETY: SIG_IGN is no function, so nothing can be called in signal context.
    let before = unsafe { nix::sys::signal::signal(Signal::SIGPIPE, SigHandler::SigIgn) };
    match before.map_err(|e| Error::io("ignore SIGPIPE", e))? {
        SigHandler::SigDfl | SigHandler::SigIgn => Ok(()),
        // SAFETY: restores the handler that was installed before.
        handler => unsafe { nix::sys::signal::signal(Signal::SIGPIPE, handler) }
            .map(|_| ())
            .map_err(|e| Error::io("restore SIGPIPE's handler", e)),
    }
}

#[cfg(test)]
mod tests {
    use super::super::sandbox::Sandbox;
    use super::*;
    use nix::sys::resource::{Resource, getrlimit, setrlimit};
    use std::process::Command;
    use std::time::{Duration, Instant};

    const GUEST: DomId = DomId(1);
    const BOUND: Duration = Duration::from_secs(60);

    #[test]
    fn arena_of_an_exited_peer_is_unmapped_without_another_call() {
        let sandbox = Sandbox::new().unwrap();
        let dom0 = sandbox.join(DomId::DOM0).unwrap();
        let guest = sandbox.join(GUEST).unwrap();
        let shared = guest.share(DomId::DOM0, 1, Access::ReadWrite).unwrap();
        drop(dom0.map(GUEST, shared.refs(), Access::ReadWrite).unwrap());
        let slot = dom0.slot(GUEST).unwrap();
        assert!(slot.is_mapped());
        drop((guest, shared));
        let end = Instant::now() + BOUND;
        while slot.is_mapped() {
            assert!(Instant::now() < end, "an exited peer's arena stays mapped");
            std::thread::yield_now();
        }
    }

    /// Runs in a process of its own, whose address space is limited.
    #[test]
    fn pages_that_cannot_be_mapped_consecutively_are_an_error_and_unpinned() {
        const CHILD: &str = "XPV_TEST_LIMITED";
        if std::env::var_os(CHILD).is_none() {
            let name =
                "local::domain::tests::pages_that_cannot_be_mapped_consecutively_are_an_error_and_unpinned";
            let mut child = Command::new(std::env::current_exe().unwrap())
                .args(["--exact", name])
                .env(CHILD, "")
                .spawn()
                .unwrap();
            let end = Instant::now() + BOUND;
            let status = loop {
                match child.try_wait().unwrap() {
                    Some(status) => break status,
                    None if Instant::now() > end => {
                        child.kill().unwrap();
                        panic!("it spins");
                    }
                    None => std::thread::yield_now(),
                }
            };
            assert!(status.success());
            return;
        }
        let sandbox = Sandbox::new().unwrap();
        let dom0 = sandbox.join(DomId::DOM0).unwrap();
        let guest = sandbox.join(GUEST).unwrap();
        let shared = guest.share(DomId::DOM0, 2, Access::ReadWrite).unwrap();
        let scattered = [shared.refs()[1], shared.refs()[0]];
        dom0.map_contiguous(GUEST, &scattered, Access::ReadWrite).unwrap();
        let (_, hard) = getrlimit(Resource::RLIMIT_AS).unwrap();
        setrlimit(Resource::RLIMIT_AS, 4096, hard).unwrap();
        let refused = dom0.map_contiguous(GUEST, &scattered, Access::ReadWrite).is_err();
        setrlimit(Resource::RLIMIT_AS, hard, hard).unwrap();
        assert!(refused);
        dom0.map_contiguous(GUEST, &scattered, Access::ReadWrite).unwrap();
        assert!(shared.end().is_ok(), "a page is still pinned");
    }
}
