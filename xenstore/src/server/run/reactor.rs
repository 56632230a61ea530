// Not a core: does I/O or calls a hypervisor.

//! Polls the listener, the eventfd and the connections, and moves bytes between sockets and the core.

use std::collections::BTreeMap;
use std::io::{self, ErrorKind, IoSlice, Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::sync::Arc;
use std::time::Duration;

use event_loop::Turn;
use nix::errno::Errno;
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};
use nix::sys::eventfd::EventFd;
use nix::sys::socket::{getsockopt, sockopt::PeerCredentials};
use nix::unistd::getuid;
use ring_abi::xs_wire::XsError;

use super::Lease;
use super::keeper::Keeper;
use crate::server::{ConnId, Core};
use ring_abi::DomId;

const LISTENER: u64 = u64::MAX;
const WAKE: u64 = u64::MAX - 1;
/// Most connections of dom0's tools at a time; further ones wait in the listener's backlog.
const MAX_TOOLS: usize = 1024;
/// Most events of one turn.
const EVENTS: usize = 64;
/// The processor time after which no further request is executed in a turn, and none of the output is sent any more. Each
/// is exceeded by one request, or one connection's output, at most.
const EXECUTING: Duration = Duration::from_millis(2);
const SENDING: Duration = Duration::from_millis(2);
/// Most messages sent by one system call.
const PARTS: usize = 128;

struct Peer {
    stream: UnixStream,
    tool: bool,
    _lease: Lease,
    /// The events registered with epoll.
    interest: EpollFlags,
}

pub(super) struct Reactor {
    core: Core,
    epoll: Epoll,
    listener: Option<UnixListener>,
    /// Whether the listener is in the epoll set; it is not while no further connection can be accepted.
    accepting: bool,
    wake: Arc<EventFd>,
    users: Vec<u32>,
    peers: BTreeMap<ConnId, Peer>,
    keeper: Option<Keeper>,
    /// Frames for the keeper, of which the memory is used again.
    frames: Vec<u8>,
}

impl Reactor {
    pub(super) fn new(
        core: Core,
        listener: Option<UnixListener>,
        users: Vec<u32>,
        wake: Arc<EventFd>,
        keeper: Option<Keeper>,
    ) -> io::Result<Reactor> {
        let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?;
        epoll.add(&*wake, EpollEvent::new(EpollFlags::EPOLLIN, WAKE))?;
        if let Some(listener) = &listener {
            listener.set_nonblocking(true)?;
        }
        let peers = BTreeMap::new();
        let accepting = false;
        let frames = Vec::new();
        let mut reactor = Reactor { core, epoll, listener, accepting, wake, users, peers, keeper, frames };
        reactor.resume_accepting();
        Ok(reactor)
    }

    /// Waits for events, or returns at once while there is work left of the last turn.
    pub(super) fn wait(&mut self) -> io::Result<Vec<EpollEvent>> {
        let mut events = vec![EpollEvent::empty(); EVENTS];
        let timeout = if self.core.has_work() { EpollTimeout::ZERO } else { EpollTimeout::NONE };
        let ready = match self.epoll.wait(&mut events, timeout) {
            Err(Errno::EINTR) => 0,
            other => other?,
        };
        events.truncate(ready);
        Ok(events)
    }

    /// Reads what has come, executes requests, and sends output, each for a while.
    pub(super) fn serve(&mut self, events: &[EpollEvent], turn: &Turn<'_>) {
        for event in events {
            match event.data() {
                LISTENER => self.accept(),
                // The caller takes commands after every call.
                WAKE => {
                    let _ = self.wake.read();
                    self.resume_accepting();
                }
                id => self.receive(ConnId(id), event.events()),
            }
        }
        let until = turn.elapsed() + EXECUTING;
        while self.core.step() && turn.elapsed() < until {}
        self.keep();
        self.flush(turn);
    }

    /// Keeps what has changed for a successor, before anybody is told of it.
    fn keep(&mut self) {
        let Some(keeper) = &mut self.keeper else { return };
        self.core.take_journal(&mut self.frames);
        let kept = keeper.append(&self.frames, || self.core.image());
        self.frames.clear();
        if let Err(error) = kept {
            tracing::error!(%error, "failed to keep the store: it is lost if the hypervisor is killed");
            keeper.remove();
            self.keeper = None;
            self.core.stop_keeping();
        }
    }

    /// Has the next wait return at once: commands are left.
    pub(super) fn return_soon(&self) {
        // EAGAIN: the counter is full, which does too.
        let _ = self.wake.write(1);
    }

    pub(super) fn introduce(
        &mut self,
        domid: DomId,
        stream: UnixStream,
        lease: Lease,
    ) -> Result<(), XsError> {
        let id = self.core.introduce(domid)?;
        self.keep();
        self.add(id, stream, lease, false)
    }

    pub(super) fn release(&mut self, domid: DomId) -> Result<(), XsError> {
        let released = self.core.release(domid);
        self.keep();
        released
    }

    pub(super) fn connect(&mut self, stream: UnixStream) {
        let id = self.core.connect();
        // A tool sees its connection closed if this fails.
        let _ = self.add(id, stream, Box::new(()), true);
    }

    /// Adds a connection's socket; EIO, with a log line, when it cannot be polled.
    fn add(&mut self, id: ConnId, stream: UnixStream, lease: Lease, tool: bool) -> Result<(), XsError> {
        let interest = EpollFlags::EPOLLIN;
        let added = stream
            .set_nonblocking(true)
            .and_then(|()| self.epoll.add(&stream, EpollEvent::new(interest, id.0)).map_err(io::Error::from));
        match added {
            Ok(()) => {
                self.peers.insert(id, Peer { stream, tool, _lease: lease, interest });
                Ok(())
            }
            Err(e) => {
                tracing::error!(error = %e, "failed to poll a xenstore connection");
                self.core.disconnect(id);
                Err(XsError::EIO)
            }
        }
    }

    /// Accepts one connection; epoll reports the next.
    fn accept(&mut self) {
        let Some(listener) = &self.listener else { return };
        match listener.accept() {
            Ok((stream, _)) if self.trusted(&stream) => self.connect(stream),
            Ok(_) => {}
            Err(e) if matches!(e.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) => {}
            Err(e) => {
                tracing::error!(error = %e, "failed to accept a xenstore connection");
                self.pause_accepting();
            }
        }
        if self.tools() >= MAX_TOOLS {
            self.pause_accepting();
        }
    }

    fn trusted(&self, stream: &UnixStream) -> bool {
        let uid = match getsockopt(stream, PeerCredentials) {
            Ok(credentials) => credentials.uid(),
            Err(e) => {
                tracing::warn!(error = %e, "failed to read a xenstore peer's credentials");
                return false;
            }
        };
        let trusted = is_trusted(uid, getuid().as_raw(), &self.users);
        if !trusted {
            tracing::warn!(uid, "refused a xenstore connection");
        }
        trusted
    }

    fn tools(&self) -> usize {
        self.peers.values().filter(|peer| peer.tool).count()
    }

    fn pause_accepting(&mut self) {
        if let Some(listener) = &self.listener
            && std::mem::take(&mut self.accepting)
        {
            let _ = self.epoll.delete(listener);
        }
    }

    fn resume_accepting(&mut self) {
        if let Some(listener) = &self.listener
            && !self.accepting
            && self.tools() < MAX_TOOLS
        {
            let event = EpollEvent::new(EpollFlags::EPOLLIN, LISTENER);
            self.accepting = self.epoll.add(listener, event).is_ok();
        }
    }

    /// Reads once from a connection whose earlier requests are executed, and has output sent.
    fn receive(&mut self, id: ConnId, ready: EpollFlags) {
        let Some(peer) = self.peers.get_mut(&id) else { return };
        if ready.contains(EpollFlags::EPOLLIN) && self.core.wants_input(id) {
            let mut bytes = [0; 4096];
            match peer.stream.read(&mut bytes) {
                Ok(0) => return self.drop_peer(id),
                Ok(n) => self.core.input(id, &bytes[..n]),
                Err(e) if matches!(e.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) => {}
                Err(_) => return self.drop_peer(id),
            }
        } else if ready.intersects(EpollFlags::EPOLLHUP | EpollFlags::EPOLLERR) && !self.core.has_request(id)
        {
            return self.drop_peer(id);
        }
        self.core.wake(id);
    }

    /// Sends output of the connections that have some, dom0's first, for a while.
    fn flush(&mut self, turn: &Turn<'_>) {
        let until = turn.elapsed() + SENDING;
        while turn.elapsed() < until {
            let Some(id) = self.core.next_woken() else { return };
            self.send(id);
        }
    }

    fn send(&mut self, id: ConnId) {
        let Some(peer) = self.peers.get_mut(&id) else { return };
        while !self.core.closed(id) {
            let parts: Vec<IoSlice<'_>> = self.core.outputs(id).take(PARTS).map(IoSlice::new).collect();
            if parts.is_empty() {
                break;
            }
            match peer.stream.write_vectored(&parts) {
                Ok(n) => self.core.sent(id, n),
                Err(e) if e.kind() == ErrorKind::Interrupted => {}
                Err(e) if e.kind() == ErrorKind::WouldBlock => break,
                Err(_) => return self.drop_peer(id),
            }
        }
        if self.core.closed(id) {
            return self.drop_peer(id);
        }
        let wanted = [
            (EpollFlags::EPOLLIN, self.core.wants_input(id)),
            (EpollFlags::EPOLLOUT, self.core.outputs(id).next().is_some()),
        ];
        let interest = wanted.into_iter().filter_map(|(flag, wanted)| wanted.then_some(flag)).collect();
        if peer.interest != interest {
            peer.interest = interest;
            if self.epoll.modify(&peer.stream, &mut EpollEvent::new(interest, id.0)).is_err() {
                self.drop_peer(id);
            }
        }
    }

    fn drop_peer(&mut self, id: ConnId) {
        self.core.disconnect(id);
        // Dropping the descriptor takes it out of the epoll set.
        self.peers.remove(&id);
        self.resume_accepting();
    }
}

/// Whether a user's processes may act for dom0: root, this process's user `own`, and the configured users.
fn is_trusted(uid: u32, own: u32, users: &[u32]) -> bool {
    uid == 0 || uid == own || users.contains(&uid)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_root_own_and_configured_users_are_trusted() {
        assert!(is_trusted(0, 1000, &[]) && is_trusted(1000, 1000, &[]) && is_trusted(33, 1000, &[33]));
        assert!(!is_trusted(33, 1000, &[]) && !is_trusted(33, 0, &[34]));
    }
}
