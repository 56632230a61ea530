//! A client's connection to the broker: one request, one reply.

use super::socket::{self, Packet};
use super::token::Token;
use super::wire::{Failure, Reply, Request};
use crate::{Error, Result};
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{Shutdown, shutdown};
use ring_abi::grant::Status;
use ring_abi::{DomId, EventPort, GrantRef};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::sync::Mutex;
use std::time::{Duration, Instant};

/// The longest that the broker may take to reply, in seconds. It normally replies at once.
const TIMEOUT_S: i64 = 10;

/// How long a request is made again that a broker does not serve yet, as it waits for the members of its predecessor.
pub(super) const PATIENCE: Duration = Duration::from_secs(8);
/// The pause before it is.
pub(super) const PAUSE: Duration = Duration::from_millis(5);

/// The connection of a domain or a controller to one broker. A domain is a member while its session exists.
#[derive(Debug)]
pub(super) struct Session {
    socket: Mutex<OwnedFd>,
}

impl Session {
    /// Joins as a domain. The token by which a later broker would know this process is returned, if this one gives any.
    ///
    /// # Errors
    /// [`Error::Denied`] where this process may not join as that domain, or another process has;
    /// [`Error::NoSuchDomain`]; [`Error::Io`] where no broker listens.
    pub(super) fn join(dir: &Path, domid: DomId) -> Result<(Self, Option<Token>)> {
        match Self::open(dir, domid, &Request::Join(domid))? {
            (session, Reply::Joined(token)) => Ok((session, Some(token))),
            (session, _) => Ok((session, None)),
        }
    }

    /// Takes up the membership of a domain that an earlier broker gave.
    ///
    /// # Errors
    /// As [`Session::join`].
    pub(super) fn rejoin(dir: &Path, domid: DomId, token: Token) -> Result<Self> {
        Ok(Self::open(dir, domid, &Request::Rejoin { domid, token })?.0)
    }

    /// Connects as a controller.
    ///
    /// # Errors
    /// [`Error::Denied`] where this user may not control domains; [`Error::Io`] where no broker listens.
    pub(super) fn control(dir: &Path) -> Result<Self> {
        Ok(Self::open(dir, DomId::SELF, &Request::Control)?.0)
    }

    fn open(dir: &Path, domid: DomId, hello: &Request) -> Result<(Self, Reply)> {
        let end = Instant::now() + PATIENCE;
        loop {
            let fd = socket::connect_to(&dir.join(super::directory::SOCKET))?;
            socket::set_timeout(&fd, TIMEOUT_S)?;
            let session = Self { socket: Mutex::new(fd) };
            match session.call(hello, None, domid) {
                Err(Error::Away) if Instant::now() < end => std::thread::park_timeout(PAUSE),
                done => return done.map(|(reply, _)| (session, reply)),
            }
        }
    }

    fn socket(&self) -> std::sync::MutexGuard<'_, OwnedFd> {
        self.socket.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    /// Sends a request that concerns domain `about`, and receives its reply.
    ///
    /// # Errors
    /// The broker's refusal; [`Error::Closed`] where it exited or ended this membership; [`Error::Io`] where it does
    /// not reply in time.
    pub(super) fn call(
        &self,
        request: &Request,
        fd: Option<BorrowedFd<'_>>,
        about: DomId,
    ) -> Result<(Reply, Vec<OwnedFd>)> {
        let socket = self.socket();
        Self::transmit(&socket, request, fd)?;
        answer(received(socket::receive(&*socket))?, about)
    }

    /// Sends a request that has no reply, or whose reply is received later.
    pub(super) fn send(&self, request: &Request) -> Result<()> {
        Self::transmit(&self.socket(), request, None)
    }

    fn transmit(socket: &OwnedFd, request: &Request, fd: Option<BorrowedFd<'_>>) -> Result<()> {
        let fds: Vec<_> = fd.iter().map(AsRawFd::as_raw_fd).collect();
        socket::send(socket, &request.encode(), &fds).map_err(|error| match error {
            Errno::EPIPE | Errno::ECONNRESET => Error::Closed,
            other => Error::io("send to the broker", other),
        })
    }

    /// Receives the reply to a request that was sent.
    pub(super) fn receive(&self, about: DomId) -> Result<(Reply, Vec<OwnedFd>)> {
        answer(received(socket::receive(&*self.socket()))?, about)
    }

    /// Whether the broker has exited, or has ended this session.
    pub(super) fn is_closed(&self) -> bool {
        let socket = self.socket();
        let mut fds = [PollFd::new(socket.as_fd(), PollFlags::empty())];
        let _ = poll(&mut fds, PollTimeout::ZERO);
        fds[0].revents().is_some_and(|flags| flags.intersects(PollFlags::POLLHUP | PollFlags::POLLERR))
    }

    /// Ends the session, though a descriptor of its connection may be open elsewhere.
    pub(super) fn end(&self) {
        let _ = shutdown(self.socket().as_raw_fd(), Shutdown::Both);
    }

    /// Duplicates the connection's descriptor, to wait for a reply.
    pub(super) fn duplicate_fd(&self) -> Result<OwnedFd> {
        self.socket()
            .as_fd()
            .try_clone_to_owned()
            .map_err(|e| Error::io("duplicate the descriptor of a session", e))
    }
}

fn received(packet: nix::Result<Option<Packet>>) -> Result<Packet> {
    match packet {
        Ok(Some(packet)) => Ok(packet),
        Ok(None) | Err(Errno::ECONNRESET) => Err(Error::Closed),
        Err(error) => Err(Error::io("receive the broker's reply", error)),
    }
}

fn answer(packet: Packet, about: DomId) -> Result<(Reply, Vec<OwnedFd>)> {
    if packet.truncated {
        return Err(Error::NoSpace("descriptors for the broker's reply"));
    }
    match Reply::decode(&packet.bytes) {
        Some(Reply::Failed(why, text)) => Err(error(why, text, about)),
        Some(reply) => Ok((reply, packet.fds)),
        None => Err(Error::Protocol("invalid reply of the broker".into())),
    }
}

fn error(why: Failure, text: String, about: DomId) -> Error {
    match why {
        Failure::Protocol => Error::Protocol(text),
        Failure::Denied | Failure::Taken => Error::Denied(text),
        Failure::NoDomain => Error::NoSuchDomain(about),
        // The caller knows the reference or port, and fills it in.
        Failure::NoArena => {
            Error::Grant { peer: about, gref: GrantRef::default(), status: Status::BAD_GNTREF }
        }
        Failure::NoPort => Error::NoSuchPort { peer: about, port: EventPort::default() },
        Failure::NoSpace => Error::NoSpace("a limit of the broker is reached"),
        Failure::Away => Error::Away,
    }
}
