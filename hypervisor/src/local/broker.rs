//! The broker: one thread that connects domains to each other and detects when one exits.
//!
//! It is on no data path. No client makes it wait: what a client has sent is closed by other threads ([`Closer`]), and
//! processes are known by descriptors. It disconnects clients that send an invalid or oversized message or unexpected descriptors,
//! and clients that do not read their replies. It serves one message of each ready client per wake-up, so that a
//! client that sends without end does not starve the others.

mod recovery;

use super::answer::{Answer, Effect};
use super::broker_config::{BrokerConfig, DomainEvent, DomainEvents};
use super::closer::{Closer, Whose};
use super::directory;
use super::peer_process;
use super::record::{Client, Role};
use super::registry::{Registry, Rules};
use super::socket::{self, Packet};
use super::state_file::{self, StateFile};
use super::wire::{Failure, Reply, Request};
use crate::{Error, Result, raise_descriptor_limit};
use event_loop::{Essential, LongestTurn};
use nix::errno::Errno;
use nix::fcntl::Flock;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags};
use nix::sys::eventfd::{EfdFlags, EventFd};
use nix::sys::socket::{Shutdown, SockFlag, accept4, getsockopt, shutdown, sockopt};
use recovery::{Recovery, Start};
use ring_abi::DomId;
use std::collections::HashMap;
use std::fs::{self, File};
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread::JoinHandle;

/// Connections of one user that have neither joined as a domain nor authenticated as a controller.
const MAX_UNAUTHENTICATED: usize = 64;
/// Packets that a client's socket may hold unread: of the smallest size, as many as fit into its buffer of at most 416 KiB.
const MAX_UNREAD: usize = 1024;
/// Connections in all.
const MAX_SESSIONS: usize = 16 << 10;
/// epoll data of the descriptors that are not sessions.
const LISTENER: u64 = 0;
const WAKE: u64 = 1;
/// With a domain's number: the process of a predecessor's member.
const PROCESS: u64 = 1 << 63;

/// A running broker. Dropping it stops it and ends every domain's membership; grants and event channels that are set
/// up already continue to work. So they do while a broker that was killed is restarted.
#[derive(Debug)]
pub struct Broker {
    dir: PathBuf,
    wake: Arc<EventFd>,
    thread: Option<JoinHandle<()>>,
    longest_turn: LongestTurn,
    has_taken_over: bool,
    /// What it keeps for a successor goes with it.
    removes_state: bool,
    _lock: Flock<File>,
}

impl Broker {
    /// Starts a broker in a thread of its own.
    ///
    /// # Errors
    /// [`Error::Denied`] where another broker runs in the directory; [`Error::Io`] if the directory, the socket or
    /// the thread cannot be created.
    pub fn spawn(mut config: BrokerConfig) -> Result<Self> {
        let lock = directory::lock(&config.dir, config.everyone)?;
        let start = Start::find(&mut config);
        let listener = directory::bind_socket(&config.dir, config.everyone)?;
        raise_descriptor_limit();
        let wake = Arc::new(
            EventFd::from_flags(EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK)
                .map_err(|e| Error::io("create the broker's eventfd", e))?,
        );
        let dir = config.dir.clone();
        let longest_turn = LongestTurn::default();
        let has_taken_over = matches!(start, Start::Successor(_));
        let state = Loop::new(config, start, listener, wake.clone(), longest_turn.clone())?;
        let thread = std::thread::Builder::new()
            .name("xpv-broker".into())
            .spawn(move || {
                let _essential = Essential;
                state.run()
            })
            .map_err(|e| Error::io("start the broker's thread", e))?;
        let thread = Some(thread);
        Ok(Self { dir, wake, thread, longest_turn, has_taken_over, removes_state: true, _lock: lock })
    }

    /// The directory of its socket.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// Whether it goes on with the domains of a broker that was killed.
    pub fn has_taken_over(&self) -> bool {
        self.has_taken_over
    }

    /// Stops as if its process were killed: its members wait for a successor in the same directory.
    pub fn hand_over(mut self) {
        self.removes_state = false;
    }

    /// The longest turn of the broker's loop so far, by its thread's processor time.
    pub fn longest_turn(&self) -> LongestTurn {
        self.longest_turn.clone()
    }
}

impl Drop for Broker {
    fn drop(&mut self) {
        if self.removes_state {
            // Before members see that it is gone: they do not wait for a successor then.
            let _ = fs::remove_file(self.dir.join(directory::SOCKET));
            state_file::remove_from(&self.dir);
        }
        let _ = self.wake.write(1);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

struct Connection {
    fd: OwnedFd,
    client: Client,
    /// Its process, where the kernel does not tell it later.
    process: Option<OwnedFd>,
    /// The pending [`Request::Await`]: the domain, and whether it is awaited alive.
    awaits: Option<(DomId, bool)>,
}

struct Loop {
    epoll: Epoll,
    listener: OwnedFd,
    _wake: Arc<EventFd>,
    sessions: HashMap<u64, Connection>,
    last: u64,
    /// Whether no connections are accepted until a descriptor is free.
    listener_paused: bool,
    registry: Registry,
    closer: Closer,
    domain_events: Option<DomainEvents>,
    longest_turn: LongestTurn,
    /// What it keeps for a successor, if anything.
    state: Option<StateFile>,
    recovery: Option<Recovery>,
}

impl Loop {
    fn new(
        config: BrokerConfig,
        start: Start,
        listener: OwnedFd,
        wake: Arc<EventFd>,
        longest_turn: LongestTurn,
    ) -> Result<Self> {
        let what = |e| Error::io("set up the broker's epoll", e);
        let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC).map_err(what)?;
        epoll.add(&listener, EpollEvent::new(EpollFlags::EPOLLIN, LISTENER)).map_err(what)?;
        epoll.add(&*wake, EpollEvent::new(EpollFlags::EPOLLIN, WAKE)).map_err(what)?;
        let rules = Rules { control_uids: config.control_uids, dom0_uids: config.dom0_uids };
        let (registry, state) = start.registry(rules, &config.dir)?;
        let mut state = Self {
            epoll,
            listener,
            _wake: wake,
            sessions: HashMap::new(),
            last: WAKE,
            listener_paused: false,
            registry,
            closer: Closer::default(),
            domain_events: config.domain_events,
            longest_turn,
            state,
            recovery: None,
        };
        state.begin_recovery();
        Ok(state)
    }

    fn run(mut self) {
        let longest_turn = self.longest_turn.clone();
        let mut events = [EpollEvent::empty(); 64];
        loop {
            self.advance_recovery();
            let count = match self.epoll.wait(&mut events, self.recovery_timeout()) {
                Ok(count) => count,
                Err(Errno::EINTR) => continue,
                Err(error) => return tracing::error!(%error, "failed to wait for clients; the broker stops"),
            };
            let _turn = longest_turn.begin();
            for event in &events[..count] {
                match event.data() {
                    WAKE => return,
                    LISTENER => self.accept(),
                    process if process & PROCESS != 0 => self.process_exited(process),
                    session => self.process_events(session),
                }
            }
        }
    }

    /// Accepts one connection.
    fn accept(&mut self) {
        let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
        let fd = match accept4(self.listener.as_raw_fd(), flags) {
            Ok(fd) => own_fd(fd),
            Err(Errno::EMFILE | Errno::ENFILE | Errno::ENOMEM | Errno::ENOBUFS) => {
                return self.pause_listener(true);
            }
            Err(_) => return,
        };
        let Ok(credentials) = getsockopt(&fd, sockopt::PeerCredentials) else { return };
        let uid = credentials.uid();
        let unauthenticated = self.sessions.values().filter(|c| c.client.role == Role::New);
        let unauthenticated = unauthenticated.filter(|c| c.client.uid == uid).count();
        if unauthenticated >= MAX_UNAUTHENTICATED || self.sessions.len() >= MAX_SESSIONS {
            tracing::warn!(uid, "connection refused: too many connections");
            return;
        }
        self.last += 1;
        if self.epoll.add(&fd, EpollEvent::new(EpollFlags::EPOLLIN, self.last)).is_err() {
            return;
        }
        let pid = credentials.pid().unsigned_abs();
        let process = match peer_process::of_connection(&fd) {
            Err(Errno::ENOPROTOOPT) => peer_process::by_number(pid, &fd).ok(),
            _ => None,
        };
        let client = Client { session: self.last, uid, pid, role: Role::New };
        self.sessions.insert(self.last, Connection { fd, client, process, awaits: None });
    }

    /// Stops or resumes accepting connections.
    fn pause_listener(&mut self, pause: bool) {
        let flags = if pause { EpollFlags::empty() } else { EpollFlags::EPOLLIN };
        match self.epoll.modify(&self.listener, &mut EpollEvent::new(flags, LISTENER)) {
            Ok(()) => self.listener_paused = pause,
            Err(error) => tracing::error!(%error, pause, "failed to pause or resume the broker's listener"),
        }
    }

    /// Serves one message of a client.
    fn process_events(&mut self, session: u64) {
        let Some(connection) = self.sessions.get(&session) else { return };
        match socket::receive(&connection.fd) {
            Ok(Some(packet)) => self.serve(session, packet),
            Err(Errno::EAGAIN) => {}
            Ok(None) | Err(_) => self.close(session),
        }
    }

    fn serve(&mut self, session: u64, packet: Packet) {
        let Packet { bytes, mut fds, truncated } = packet;
        let fits = |request: &Request| !truncated && fds.len() <= usize::from(request.has_descriptor());
        let whose = self.whose(session);
        let request = Request::decode(&bytes).filter(fits);
        let is_busy = self.closer.is_busy(whose);
        if is_busy && request.is_some() && self.registry.is_recovering() {
            // A member offers all that it has at once.
            self.closer.close(whose, fds);
            let answer = Reply::Failed(Failure::Away, "descriptors are being closed".into());
            return self.answer(session, answer.into());
        }
        let Some(request) = request.filter(|_| !is_busy) else {
            self.closer.close(whose, fds);
            let answer = Reply::Failed(Failure::Protocol, "not a message of this protocol".into());
            self.answer(session, answer.into());
            return self.close(session);
        };
        if let Request::Join(domid) = request {
            self.reap(domid);
            if self.closer.is_busy(Some(domid)) {
                let why = format!("descriptors that domain {domid} has sent are not closed yet");
                return self.answer(session, Reply::Failed(Failure::NoSpace, why).into());
            }
        }
        let Some(connection) = self.sessions.get_mut(&session) else {
            return self.closer.close(whose, fds);
        };
        // What is sent may be dropped by whoever takes it, as it is no arena, and be closed by this thread all the same: a
        // duplicate is closed last.
        let fd = fds.pop();
        if let Some(last) = fd.as_ref().and_then(|fd| fd.try_clone().ok()) {
            fds.push(last);
        }
        let is_new = connection.client.role == Role::New;
        let answer = match (connection.client.role, request) {
            (Role::Controller, Request::Process(domid)) if !self.registry.is_recovering() => {
                self.process(domid)
            }
            (Role::Controller, Request::LongestTurn) => {
                let longest = self.longest_turn.get().as_micros();
                Reply::Microseconds(longest.try_into().unwrap_or(u32::MAX)).into()
            }
            (_, request) => self.registry.handle(&mut connection.client, request, fd),
        };
        self.closer.close(whose, fds);
        // Before the reply: what a client was told a successor knows.
        self.keep_changes();
        if is_new && let (Some(_), Some(connection)) = (self.whose(session), self.sessions.get(&session)) {
            peer_process::permit_descriptors(&connection.fd, true);
        }
        self.answer(session, answer);
    }

    /// The process that has joined as a domain.
    fn process(&self, domid: DomId) -> Answer {
        let member = self.registry.member(domid).and_then(|session| self.sessions.get(&session));
        let Some(connection) = member else {
            return Reply::Failed(Failure::NoDomain, "the domain is not running".into()).into();
        };
        let process = match &connection.process {
            Some(process) => process.try_clone().map_err(|_| Errno::EMFILE),
            None => peer_process::of_connection(&connection.fd),
        };
        match process {
            Ok(process) => Answer { fds: vec![process], ..Reply::Done.into() },
            Err(Errno::EMFILE | Errno::ENFILE) => {
                Reply::Failed(Failure::NoSpace, "too many descriptors".into()).into()
            }
            Err(error) => Reply::Failed(Failure::NoDomain, format!("its process is gone: {error}")).into(),
        }
    }

    /// Whose descriptors a session's are.
    fn whose(&self, session: u64) -> Whose {
        match self.sessions.get(&session)?.client.role {
            Role::Member(domid) => Some(domid),
            Role::New | Role::Controller => None,
        }
    }

    /// Closes the session of a domain whose process has exited: another process may join before the hang-up is
    /// processed.
    fn reap(&mut self, domid: DomId) {
        let Some(session) = self.registry.member(domid) else { return };
        let exited = self.sessions.get(&session).is_none_or(|connection| {
            let mut fds = [PollFd::new(connection.fd.as_fd(), PollFlags::empty())];
            let _ = poll(&mut fds, PollTimeout::ZERO);
            fds[0].revents().is_some_and(|flags| flags.intersects(PollFlags::POLLHUP | PollFlags::POLLERR))
        });
        if exited {
            self.close(session);
        }
    }

    /// Sends a reply, then carries out the request's effects.
    fn answer(&mut self, session: u64, answer: Answer) {
        let failed = match (&answer.reply, self.sessions.get(&session)) {
            (Some(reply), Some(connection)) => {
                socket::send(&connection.fd, &reply.encode(), &answer.fds).is_err()
            }
            _ => false,
        };
        drop(answer.fds);
        for effect in answer.effects {
            self.apply(session, effect);
        }
        self.close_discarded();
        if failed {
            self.close(session);
        }
    }

    fn apply(&mut self, session: u64, effect: Effect) {
        match effect {
            Effect::Store(domid, stream, lease) => {
                self.emit(DomainEvent::Connect { domid, stream, lease });
            }
            Effect::Exited(domid) => self.emit(DomainEvent::Exited { domid }),
            Effect::Disconnect(other) => self.close(other),
            Effect::Changed(domid) => self.release(|(awaited, _)| awaited == domid),
            Effect::Await(domid, alive) => {
                if let Some(connection) = self.sessions.get_mut(&session) {
                    connection.awaits = Some((domid, alive));
                }
                self.release(|awaited| awaited == (domid, alive));
            }
        }
    }

    fn emit(&mut self, event: DomainEvent) {
        if let Some(domain_events) = &mut self.domain_events {
            domain_events(event);
        }
    }

    /// Answers the pending [`Request::Await`]s that `concerned` selects and that are fulfilled now.
    fn release(&mut self, concerned: impl Fn((DomId, bool)) -> bool) {
        if self.recovery.is_some() {
            // All are looked at when it ends.
            return;
        }
        for connection in self.sessions.values_mut() {
            let Some((domid, alive)) = connection.awaits.filter(|awaits| concerned(*awaits)) else {
                continue;
            };
            let reply = match self.registry.is_alive(domid) {
                Some(now) if now == alive => Reply::Done,
                None if !alive => Reply::Done,
                None => Reply::Failed(Failure::NoDomain, "the domain was destroyed".into()),
                Some(_) => continue,
            };
            connection.awaits = None;
            // Where sending fails the client has exited, and its connection will hang up.
            let _ = socket::send(&connection.fd, &reply.encode(), &[] as &[OwnedFd]);
        }
    }

    /// Closes a session; if it is a domain's, the domain's process has exited or is no longer a member.
    fn close(&mut self, session: u64) {
        let whose = self.whose(session);
        let Some(connection) = self.sessions.remove(&session) else { return };
        let _ = self.epoll.delete(&connection.fd);
        // Nothing is sent to it any more, and what was is closed by another thread.
        let _ = shutdown(connection.fd.as_raw_fd(), Shutdown::Both);
        let unread = (0..MAX_UNREAD).map_while(|_| socket::receive(&connection.fd).ok()).flatten();
        self.closer.close(whose, unread.flat_map(|packet| packet.fds).collect());
        if self.listener_paused {
            self.pause_listener(false);
        }
        let Role::Member(domid) = connection.client.role else { return };
        if self.registry.member(domid) == Some(session) {
            for effect in self.registry.leave(domid) {
                self.apply(session, effect);
            }
        }
        self.keep_changes();
        self.close_discarded();
    }

    fn close_discarded(&mut self) {
        for (owner, descriptor) in self.registry.take_discarded() {
            self.closer.close(Some(owner), vec![descriptor]);
        }
    }
}

#[allow(unsafe_code)] // Takes ownership of a descriptor that a system call returned.
fn own_fd(fd: std::os::fd::RawFd) -> OwnedFd {
    // SAFETY: `accept4` has just created it, and nothing else owns it.
    unsafe { OwnedFd::from_raw_fd(fd) }
}
