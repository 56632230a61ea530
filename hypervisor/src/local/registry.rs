//! The state of the broker: domains, their members, arenas and ports, and the replies to requests.
//!
//! Nothing here waits or reads a socket: a request is turned into a reply, descriptors and effects.

mod recovery;

use super::answer::{Answer, Effect, Outcome, StoreLease, fail};
use super::arena;
use super::balloon;
use super::events::EventPipes;
use super::layout::Layout;
#[cfg(any(test, fuzzing))]
use super::record::GUEST_PORTS;
use super::record::{Client, Offered, PortState, Record, Role};
use super::token::Token;
use super::wire::{Failure, Reply, Request};
use nix::fcntl::OFlag;
use nix::sys::stat::fstat;
use nix::unistd::pipe2;
use ring_abi::{DomId, EventPort};
use std::collections::{BTreeMap, BTreeSet};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::sync::Arc;

/// Arenas that a guest may offer: it has devices of domain 0 and of a few driver domains.
const GUEST_ARENAS: usize = 32;
/// Connections to the store that a guest's process may have at a time: it needs one, and one a device.
const GUEST_STORES: usize = 256;
/// Domains in all.
const MAX_DOMAINS: usize = 4096;

/// The users who have special permissions.
#[derive(Clone, Debug)]
pub(super) struct Rules {
    pub(super) control_uids: Vec<u32>,
    pub(super) dom0_uids: Vec<u32>,
}

/// The state of all domains.
pub(super) struct Registry {
    rules: Rules,
    domains: BTreeMap<DomId, Record>,
    last: DomId,
    /// Descriptors of arenas that are not used any more, and whose they were.
    discarded: Vec<(DomId, OwnedFd)>,
    /// Whether members get a token by which a successor knows them.
    has_tokens: bool,
    /// Domains whose name, member or existence has changed.
    changed: BTreeSet<DomId>,
    /// Domains whose members at the predecessor have not taken up their memberships, nor been given up. While there are
    /// any, nothing else is served.
    unresumed: BTreeSet<DomId>,
    /// Domains of the predecessor.
    inherited: BTreeSet<DomId>,
}

impl Registry {
    /// Creates the state of a machine with domain 0 alone.
    pub(super) fn new(rules: Rules) -> Self {
        let dom0 = Record::new("Domain-0".into(), rules.dom0_uids.clone());
        Self {
            rules,
            domains: BTreeMap::from([(DomId::DOM0, dom0)]),
            last: DomId::DOM0,
            discarded: Vec::new(),
            has_tokens: false,
            changed: BTreeSet::new(),
            unresumed: BTreeSet::new(),
            inherited: BTreeSet::new(),
        }
    }

    /// The session of the process that has joined as this domain.
    pub(super) fn member(&self, domid: DomId) -> Option<u64> {
        Some(self.domains.get(&domid)?.member?.session)
    }

    /// Whether the domain has a member; `None` if there is no such domain.
    pub(super) fn is_alive(&self, domid: DomId) -> Option<bool> {
        self.domains.get(&domid).map(|record| record.member.is_some())
    }

    /// Takes the descriptors of arenas that are not used any more.
    pub(super) fn take_discarded(&mut self) -> Vec<(DomId, OwnedFd)> {
        std::mem::take(&mut self.discarded)
    }

    /// Carries out a client's request, if it is permitted.
    pub(super) fn handle(&mut self, client: &mut Client, request: Request, fd: Option<OwnedFd>) -> Answer {
        let outcome = match (client.role, request) {
            (role, request) if self.is_recovering() && !recovery::is_permitted(role, &request) => {
                fail(Failure::Away, "the broker waits for the members of its predecessor")
            }
            (Role::New, Request::Join(domid)) => self.join(client, domid),
            (Role::New, Request::Rejoin { domid, token }) => self.rejoin(client, domid, token),
            (Role::New, Request::Control) => self.control(client),
            (Role::Member(me), request) => self.serve(me, request, fd),
            (Role::Controller, request) => self.manage(request),
            _ => fail(Failure::Protocol, "the first message must be Join or Control"),
        };
        outcome.unwrap_or_else(|(why, text)| Reply::Failed(why, text).into())
    }

    fn join(&mut self, client: &mut Client, domid: DomId) -> Outcome {
        let Some(record) = self.domains.get_mut(&domid) else {
            return fail(Failure::NoDomain, "no such domain");
        };
        if !record.uids.contains(&client.uid) {
            return fail(Failure::Denied, format!("user {} may not join as domain {domid}", client.uid));
        }
        if let Some(member) = record.member {
            return fail(Failure::Taken, format!("process {} is domain {domid} already", member.pid));
        }
        let token = self.has_tokens.then(Token::random).transpose();
        let token = token.or_else(|error| fail(Failure::NoSpace, error.to_string()))?;
        client.role = Role::Member(domid);
        record.member = Some(*client);
        record.token = token;
        self.changed.insert(domid);
        let reply = token.map_or(Reply::Done, Reply::Joined);
        Ok(Answer { effects: vec![Effect::Changed(domid)], ..reply.into() })
    }

    fn control(&self, client: &mut Client) -> Outcome {
        if !self.rules.control_uids.contains(&client.uid) {
            return fail(Failure::Denied, format!("user {} may not control domains", client.uid));
        }
        client.role = Role::Controller;
        Ok(Reply::Done.into())
    }

    /// Carries out a domain's request.
    fn serve(&mut self, me: DomId, request: Request, fd: Option<OwnedFd>) -> Outcome {
        match request {
            Request::Offer { peer, pages } => self.offer(me, peer, pages, fd),
            Request::Fetch(owner) => self.fetch(me, owner),
            Request::AllocUnbound(peer) => self.alloc_unbound(me, peer),
            Request::BindInterdomain { peer, port } => self.bind_interdomain(me, peer, port),
            Request::Close(port) => {
                self.record(me)?.ports.remove(&port.0);
                Ok(Answer::default())
            }
            Request::Store => self.store(me),
            Request::Retirements => self.retirements(me),
            Request::RestorePort(port) => self.restore_port(me, port),
            Request::Resumed => self.resumed(me),
            Request::HasResumed(peer) => self.has_resumed(peer),
            _ => fail(Failure::Denied, "not a request of a domain"),
        }
    }

    fn record(&mut self, domid: DomId) -> Result<&mut Record, (Failure, String)> {
        self.domains.get_mut(&domid).map_or_else(|| fail(Failure::NoDomain, "no such domain"), Ok)
    }

    fn offer(&mut self, me: DomId, peer: DomId, pages: u32, fd: Option<OwnedFd>) -> Outcome {
        let Some(fd) = fd else { return fail(Failure::Protocol, "an arena without a descriptor") };
        let Some(layout) = Layout::new(pages) else {
            return fail(Failure::Protocol, format!("an arena cannot have {pages} pages"));
        };
        if let Err(error) = arena::check(fd.as_fd(), layout) {
            return fail(Failure::Protocol, error.to_string());
        }
        self.record(peer)?;
        let arenas = &mut self.record(me)?.arenas;
        if me != DomId::DOM0 && arenas.len() >= GUEST_ARENAS && !arenas.contains_key(&peer) {
            return fail(Failure::NoSpace, "too many arenas");
        }
        let is_same = |old: &Offered| is_same_file(&old.fd, &fd);
        if arenas.get(&peer).is_some_and(is_same) {
            // Offered once more, as its owner did not see the reply.
            return Ok(Reply::Done.into());
        }
        if let Some(old) = arenas.insert(peer, Offered { fd, layout }) {
            self.retire(me, peer, old);
        }
        Ok(Reply::Done.into())
    }

    fn fetch(&mut self, me: DomId, owner: DomId) -> Outcome {
        let record = self.record(owner)?;
        if record.member.is_none() {
            return fail(Failure::NoDomain, "the domain is not running");
        }
        let Some(offered) = record.arenas.get(&me) else {
            return fail(Failure::NoArena, "the domain has no arena for this domain");
        };
        let fd = offered.fd.try_clone().or_else(|error| fail(Failure::NoSpace, error.to_string()))?;
        Ok(Answer { fds: vec![fd], ..Reply::Arena(offered.layout.pages()).into() })
    }

    fn alloc_unbound(&mut self, me: DomId, peer: DomId) -> Outcome {
        self.record(peer)?;
        let (own, other) = EventPipes::pair().or_else(|error| fail(Failure::NoSpace, error.to_string()))?;
        // The end that binds starts pending, as with EVTCHNOP_bind_interdomain.
        own.notify().or_else(|error| fail(Failure::NoSpace, error.to_string()))?;
        let port = self.record(me)?.open_port(me, PortState::Unbound { peer, other })?;
        Ok(Answer { fds: vec![own.incoming, own.outgoing], ..Reply::Port(port).into() })
    }

    fn bind_interdomain(&mut self, me: DomId, peer: DomId, port: EventPort) -> Outcome {
        let unbound = self.record(peer)?.ports.get(&port.0);
        if !matches!(unbound, Some(PortState::Unbound { peer, .. }) if *peer == me) {
            return fail(Failure::NoPort, "no unbound port of that number for this domain");
        }
        let own = self.record(me)?.open_port(me, PortState::Interdomain)?;
        match self.record(peer)?.ports.insert(port.0, PortState::Interdomain) {
            Some(PortState::Unbound { other, .. }) => {
                Ok(Answer { fds: vec![other.incoming, other.outgoing], ..Reply::Port(own).into() })
            }
            _ => fail(Failure::NoPort, "no unbound port of that number for this domain"),
        }
    }

    fn retirements(&mut self, me: DomId) -> Outcome {
        let flags = OFlag::O_CLOEXEC | OFlag::O_NONBLOCK;
        let (told, tells) = pipe2(flags).or_else(|e| fail(Failure::NoSpace, e.to_string()))?;
        self.record(me)?.retirements = Some(tells);
        Ok(Answer { fds: vec![told], ..Reply::Done.into() })
    }

    /// Retires an arena of `owner` for `peer`, which is told.
    fn retire(&mut self, owner: DomId, peer: DomId, offered: Offered) {
        if let Err(error) = arena::retire(&offered.fd, offered.layout) {
            tracing::error!(%error, "failed to retire an arena");
        }
        if let Some(pipe) = self.domains.get(&peer).and_then(|record| record.retirements.as_ref()) {
            // EAGAIN: the pipe is full, so that the peer will look.
            let _ = nix::unistd::write(pipe, &[0]);
        }
        self.discarded.push((owner, offered.fd));
    }

    fn store(&mut self, me: DomId) -> Outcome {
        let record = self.record(me)?;
        let open = Arc::strong_count(&record.stores) - 1;
        if me != DomId::DOM0 && open >= GUEST_STORES {
            return fail(Failure::NoSpace, "too many connections to the store");
        }
        let lease = StoreLease(record.stores.clone());
        let (client_end, store_end) =
            UnixStream::pair().or_else(|e| fail(Failure::NoSpace, e.to_string()))?;
        let effects = vec![Effect::Store(me, store_end, lease)];
        Ok(Answer { fds: vec![client_end.into()], effects, ..Reply::Done.into() })
    }

    /// Carries out a controller's request.
    fn manage(&mut self, request: Request) -> Outcome {
        match request {
            Request::Create { uid, domid, name } => self.create(uid, domid, name),
            Request::Destroy(domid) => self.destroy(domid),
            Request::Next(after) => Ok(self.next(after).into()),
            Request::Await { domid, alive } => {
                self.record(domid)?;
                Ok(Answer { effects: vec![Effect::Await(domid, alive)], ..Answer::default() })
            }
            _ => fail(Failure::Denied, "not a request of a controller"),
        }
    }

    fn create(&mut self, uid: u32, domid: Option<DomId>, name: String) -> Outcome {
        if self.domains.values().any(|record| record.name == name) {
            return fail(Failure::Taken, format!("a domain is called {name} already"));
        }
        if self.domains.len() >= MAX_DOMAINS {
            return fail(Failure::NoSpace, "too many domains");
        }
        let domid = domid.unwrap_or_else(|| self.free_number());
        if self.domains.contains_key(&domid) {
            return fail(Failure::Taken, format!("domain {domid} exists already"));
        }
        let record = Record::new(name, vec![uid]);
        let info = record.info(domid);
        self.domains.insert(domid, record);
        self.changed.insert(domid);
        Ok(Reply::Domain(info).into())
    }

    /// The number that was unused for longest.
    fn free_number(&mut self) -> DomId {
        loop {
            self.last = DomId((self.last.0 + 1) % DomId::FIRST_RESERVED.0);
            if !self.domains.contains_key(&self.last) {
                return self.last;
            }
        }
    }

    fn destroy(&mut self, domid: DomId) -> Outcome {
        if domid == DomId::DOM0 {
            return fail(Failure::Denied, "domain 0 cannot be destroyed");
        }
        let session = self.record(domid)?.member.map(|client| client.session);
        let mut effects = if session.is_some() { self.leave(domid) } else { vec![Effect::Changed(domid)] };
        effects.extend(session.map(Effect::Disconnect));
        self.domains.remove(&domid);
        self.changed.insert(domid);
        // Arenas for it must not pass to a later domain of the same number.
        let all = self.domains.iter_mut();
        let theirs: Vec<_> =
            all.filter_map(|(owner, record)| Some((*owner, record.arenas.remove(&domid)?))).collect();
        for (owner, offered) in theirs {
            self.retire(owner, domid, offered);
        }
        Ok(Answer { effects, ..Reply::Done.into() })
    }

    fn next(&self, after: Option<DomId>) -> Reply {
        let from = after.map_or(DomId::DOM0, |domid| DomId(domid.0.saturating_add(1)));
        let next = self.domains.range(from..).next();
        next.map_or(Reply::End, |(domid, record)| Reply::Domain(record.info(*domid)))
    }

    /// Checks the invariants, for the harness.
    ///
    /// # Panics
    /// If one is violated.
    #[cfg(any(test, fuzzing))]
    pub(super) fn check(&self) {
        assert!(self.domains.contains_key(&DomId::DOM0) && self.domains.len() <= MAX_DOMAINS);
        let mut names = std::collections::HashSet::new();
        let mut members = std::collections::HashSet::new();
        for (domid, record) in &self.domains {
            assert!(names.insert(&record.name), "two domains are called {}", record.name);
            if let Some(member) = &record.member {
                assert!(members.insert(member.session), "one client has joined as two domains");
                assert!(
                    record.uids.contains(&member.uid),
                    "user {} has joined as domain {domid}",
                    member.uid
                );
                assert_eq!(member.role, Role::Member(*domid));
            } else {
                assert!(
                    record.ports.is_empty() && record.arenas.is_empty(),
                    "a domain without a process has ports or arenas"
                );
            }
            assert!(
                record.arenas.keys().all(|peer| self.domains.contains_key(peer)),
                "an arena for a domain that does not exist"
            );
            if *domid != DomId::DOM0 {
                assert!(record.ports.len() <= GUEST_PORTS && record.arenas.len() <= GUEST_ARENAS);
            }
        }
    }

    /// Removes a domain's member: retires its arenas, frees its ports, and unpins the pages that it had mapped.
    pub(super) fn leave(&mut self, domid: DomId) -> Vec<Effect> {
        let Some(record) = self.domains.get_mut(&domid) else { return Vec::new() };
        record.member = None;
        record.token = None;
        record.awaited = None;
        self.unresumed.remove(&domid);
        self.changed.insert(domid);
        record.ports.clear();
        record.stores = Arc::default();
        record.retirements = None;
        for (peer, offered) in std::mem::take(&mut record.arenas) {
            self.retire(domid, peer, offered);
        }
        for offered in self.domains.values().filter_map(|other| other.arenas.get(&domid)) {
            if let Err(error) = arena::release_all(&offered.fd, offered.layout) {
                tracing::error!(%error, %domid, "failed to unpin the pages of an exited domain");
            }
            if let Err(error) = balloon::record_exit(&offered.fd, offered.layout) {
                tracing::error!(%error, %domid, "failed to record the exit of a domain that owns pages");
            }
        }
        if self.inherited.contains(&domid) {
            // Told at the end of the recovery, when all arenas for it are known, by another call.
            return Vec::new();
        }
        vec![Effect::Exited(domid), Effect::Changed(domid)]
    }
}

/// Whether two descriptors are of one file.
fn is_same_file(one: &OwnedFd, other: &OwnedFd) -> bool {
    let id = |fd: &OwnedFd| fstat(fd).ok().map(|stat| (stat.st_dev, stat.st_ino));
    id(one).is_some_and(|one| id(other) == Some(one))
}
