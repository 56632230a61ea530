//! A client's connection to the broker: one request, one reply.

use super::socket::{self, Packet};
use super::wire::{Failure, Reply, Request};
use crate::{Error, Result};
use ring_abi::grant::Status;
use ring_abi::{DomId, EventPort, GrantRef};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::sync::Mutex;

/// The longest that the broker may take to reply, in seconds. It normally replies at once.
const TIMEOUT_S: i64 = 10;

/// The connection of a domain or a controller. A domain is a member while its session exists.
#[derive(Debug)]
pub(super) struct Session {
    socket: Mutex<OwnedFd>,
    domid: DomId,
}

impl Session {
    /// Joins as a domain.
    ///
    /// # Errors
    /// [`Error::Denied`] where this process may not join as that domain, or another process has;
    /// [`Error::NoSuchDomain`]; [`Error::Io`] where no broker listens.
    pub(super) fn join(dir: &Path, domid: DomId) -> Result<Self> {
        Self::open(dir, domid, &Request::Join(domid))
    }

    /// Connects as a controller.
    ///
    /// # Errors
    /// [`Error::Denied`] where this user may not control domains; [`Error::Io`] where no broker listens.
    pub(super) fn control(dir: &Path) -> Result<Self> {
        Self::open(dir, DomId::SELF, &Request::Control)
    }

    fn open(dir: &Path, domid: DomId, hello: &Request) -> Result<Self> {
        let fd = socket::connect_to(&dir.join(super::directory::SOCKET))?;
        socket::set_timeout(&fd, TIMEOUT_S)?;
        let session = Self { socket: Mutex::new(fd), domid };
        session.call(hello, None, domid)?;
        Ok(session)
    }

    /// The domain that has joined.
    pub(super) fn domid(&self) -> DomId {
        self.domid
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
        let packet = socket::receive(&*socket).map_err(|e| Error::io("receive the broker's reply", e))?;
        answer(packet.ok_or(Error::Closed)?, about)
    }

    /// Sends a request that has no reply, or whose reply is received later.
    pub(super) fn send(&self, request: &Request) -> Result<()> {
        Self::transmit(&self.socket(), request, None)
    }

    fn transmit(socket: &OwnedFd, request: &Request, fd: Option<BorrowedFd<'_>>) -> Result<()> {
        use std::os::fd::AsRawFd;
        let fds: Vec<_> = fd.iter().map(AsRawFd::as_raw_fd).collect();
        socket::send(socket, &request.encode(), &fds).map_err(|error| match error {
            nix::errno::Errno::EPIPE | nix::errno::Errno::ECONNRESET => Error::Closed,
            other => Error::io("send to the broker", other),
        })
    }

    /// Receives the reply to a request that was sent.
    pub(super) fn receive(&self, about: DomId) -> Result<(Reply, Vec<OwnedFd>)> {
        let packet =
            socket::receive(&*self.socket()).map_err(|e| Error::io("receive the broker's reply", e))?;
        answer(packet.ok_or(Error::Closed)?, about)
    }

    /// Duplicates the connection's descriptor, to wait for a reply.
    pub(super) fn duplicate_fd(&self) -> Result<OwnedFd> {
        self.socket()
            .as_fd()
            .try_clone_to_owned()
            .map_err(|e| Error::io("duplicate the descriptor of a session", e))
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
    }
}
