//! Epoll over the listener, the wake-up and the connections: readiness in, bytes moved.

use std::collections::BTreeMap;
use std::io::{self, ErrorKind, Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::sync::Arc;

use nix::errno::Errno;
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};
use nix::sys::eventfd::EventFd;
use nix::sys::socket::{getsockopt, sockopt::PeerCredentials};
use nix::unistd::getuid;
use ring_abi::xs_wire::XsError;

use crate::DomId;
use crate::server::{ConnId, Core};

const LISTENER: u64 = u64::MAX;
const WAKE: u64 = u64::MAX - 1;
/// Most connections of dom0's tools at a time; more wait to be accepted.
const MOST_TOOLS: usize = 1024;

struct Peer {
    stream: UnixStream,
    tool: bool,
    /// What epoll is asked to tell.
    interest: EpollFlags,
}

pub(super) struct Reactor {
    core: Core,
    epoll: Epoll,
    listener: Option<UnixListener>,
    /// The listener is in the epoll set; it is not while no further connection can be taken.
    accepting: bool,
    wake: Arc<EventFd>,
    users: Vec<u32>,
    peers: BTreeMap<ConnId, Peer>,
}

impl Reactor {
    pub(super) fn new(
        core: Core,
        listener: Option<UnixListener>,
        users: Vec<u32>,
        wake: Arc<EventFd>,
    ) -> io::Result<Reactor> {
        let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?;
        epoll.add(&*wake, EpollEvent::new(EpollFlags::EPOLLIN, WAKE))?;
        if let Some(listener) = &listener {
            listener.set_nonblocking(true)?;
        }
        let peers = BTreeMap::new();
        let mut reactor = Reactor { core, epoll, listener, accepting: false, wake, users, peers };
        reactor.accept_again();
        Ok(reactor)
    }

    /// Waits for readiness and does what it allows.
    pub(super) fn turn(&mut self) -> io::Result<()> {
        let mut events = [EpollEvent::empty(); 64];
        let ready = match self.epoll.wait(&mut events, EpollTimeout::NONE) {
            Err(Errno::EINTR) => 0,
            other => other?,
        };
        for event in &events[..ready] {
            match event.data() {
                LISTENER => self.accept(),
                // Only wakes; the commands are looked for after every turn.
                WAKE => {
                    let _ = self.wake.read();
                    self.accept_again();
                }
                id => self.move_bytes(ConnId(id), event.events()),
            }
        }
        self.flush();
        Ok(())
    }

    pub(super) fn introduce(&mut self, domid: DomId, stream: UnixStream) -> Result<(), XsError> {
        let id = self.core.introduce(domid)?;
        let adopted = self.adopt(id, stream, false);
        self.flush();
        adopted
    }

    pub(super) fn release(&mut self, domid: DomId) -> Result<(), XsError> {
        let done = self.core.release(domid);
        self.flush();
        done
    }

    pub(super) fn connect(&mut self, stream: UnixStream) {
        let id = self.core.connect();
        // A tool sees its connection closed if this fails.
        let _ = self.adopt(id, stream, true);
    }

    /// Takes over a connection's socket; EIO, told in the log, when it cannot be polled.
    fn adopt(&mut self, id: ConnId, stream: UnixStream, tool: bool) -> Result<(), XsError> {
        let interest = EpollFlags::EPOLLIN;
        let adopted = stream
            .set_nonblocking(true)
            .and_then(|()| self.epoll.add(&stream, EpollEvent::new(interest, id.0)).map_err(io::Error::from));
        match adopted {
            Ok(()) => {
                self.peers.insert(id, Peer { stream, tool, interest });
                Ok(())
            }
            Err(e) => {
                tracing::error!("a xenstore connection cannot be polled: {e}");
                self.core.disconnect(id);
                Err(XsError::EIO)
            }
        }
    }

    /// Takes one connection; epoll tells of the next.
    fn accept(&mut self) {
        let Some(listener) = &self.listener else { return };
        match listener.accept() {
            Ok((stream, _)) if self.trusted(&stream) => self.connect(stream),
            Ok(_) => {}
            Err(e) if matches!(e.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) => {}
            Err(e) => {
                tracing::error!("xenstore cannot accept a connection: {e}");
                self.accept_no_more();
            }
        }
        if self.tools() >= MOST_TOOLS {
            self.accept_no_more();
        }
    }

    fn trusted(&self, stream: &UnixStream) -> bool {
        let uid = match getsockopt(stream, PeerCredentials) {
            Ok(credentials) => credentials.uid(),
            Err(e) => {
                tracing::warn!("a xenstore peer without credentials: {e}");
                return false;
            }
        };
        let trusted = admits(uid, getuid().as_raw(), &self.users);
        if !trusted {
            tracing::warn!(uid, "refused a xenstore connection");
        }
        trusted
    }

    fn tools(&self) -> usize {
        self.peers.values().filter(|peer| peer.tool).count()
    }

    fn accept_no_more(&mut self) {
        if let Some(listener) = &self.listener
            && std::mem::take(&mut self.accepting)
        {
            let _ = self.epoll.delete(listener);
        }
    }

    fn accept_again(&mut self) {
        if let Some(listener) = &self.listener
            && !self.accepting
            && self.tools() < MOST_TOOLS
        {
            let event = EpollEvent::new(EpollFlags::EPOLLIN, LISTENER);
            self.accepting = self.epoll.add(listener, event).is_ok();
        }
    }

    /// One read's worth, then everybody else has a turn.
    fn move_bytes(&mut self, id: ConnId, ready: EpollFlags) {
        let Some(peer) = self.peers.get_mut(&id) else { return };
        if ready.contains(EpollFlags::EPOLLIN) {
            let mut bytes = [0; 4096];
            match peer.stream.read(&mut bytes) {
                Ok(0) => return self.drop_peer(id),
                Ok(n) => self.core.input(id, &bytes[..n]),
                Err(e) if matches!(e.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) => {}
                Err(_) => return self.drop_peer(id),
            }
        } else if ready.intersects(EpollFlags::EPOLLHUP | EpollFlags::EPOLLERR) {
            return self.drop_peer(id);
        }
        self.send(id);
    }

    /// Sends what the core has for anybody, until it has nothing more to say to those that can take it.
    fn flush(&mut self) {
        loop {
            let woken = self.core.take_woken();
            if woken.is_empty() {
                return;
            }
            for id in woken {
                self.send(id);
            }
        }
    }

    fn send(&mut self, id: ConnId) {
        let Some(peer) = self.peers.get_mut(&id) else { return };
        while !self.core.closed(id) && !self.core.output(id).is_empty() {
            match peer.stream.write(self.core.output(id)) {
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
            (EpollFlags::EPOLLOUT, !self.core.output(id).is_empty()),
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
        self.accept_again();
    }
}

/// Who may speak for dom0: root, the user this runs as, and those named.
fn admits(uid: u32, own: u32, users: &[u32]) -> bool {
    uid == 0 || uid == own || users.contains(&uid)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn strangers_are_not_admitted() {
        assert!(admits(0, 1000, &[]) && admits(1000, 1000, &[]) && admits(33, 1000, &[33]));
        assert!(!admits(33, 1000, &[]) && !admits(33, 0, &[34]));
    }
}
