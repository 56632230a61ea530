//! A client's connection to the broker: one request, one reply.

use super::socket::{self, Packet};
use super::wire::{Failure, Reply, Request};
use crate::{DomId, Error, EventPort, GrantRef, Result};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::sync::Mutex;

/// How long the broker may take to answer, in seconds: it answers at once or is not well.
const PATIENCE: i64 = 30;

/// The connection of a domain, or of one who controls them. While it lives, the domain is alive.
#[derive(Debug)]
pub(super) struct Session {
    socket: Mutex<OwnedFd>,
    domid: DomId,
}

impl Session {
    /// Joins as a domain.
    ///
    /// # Errors
    /// [`Error::Denied`] where this process may not be that domain or another is; [`Error::NoSuchDomain`].
    pub(super) fn join(dir: &Path, domid: DomId) -> Result<Self> {
        Self::open(dir, domid, &Request::Join(domid))
    }

    /// Connects to control the broker.
    ///
    /// # Errors
    /// [`Error::Denied`].
    pub(super) fn control(dir: &Path) -> Result<Self> {
        Self::open(dir, DomId::SELF, &Request::Control)
    }

    fn open(dir: &Path, domid: DomId, hello: &Request) -> Result<Self> {
        let fd = socket::connect_to(&dir.join(super::broker::SOCKET))?;
        socket::set_timeout(&fd, PATIENCE)?;
        let session = Self { socket: Mutex::new(fd), domid };
        session.call(hello, None, domid)?;
        Ok(session)
    }

    /// Which domain it is that has joined.
    pub(super) fn domid(&self) -> DomId {
        self.domid
    }

    fn socket(&self) -> std::sync::MutexGuard<'_, OwnedFd> {
        self.socket.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    /// One request about domain `about`, and its answer.
    ///
    /// # Errors
    /// What the broker says, or [`Error::Closed`] where it is gone or ended this membership.
    pub(super) fn call(
        &self,
        request: &Request,
        fd: Option<BorrowedFd<'_>>,
        about: DomId,
    ) -> Result<(Reply, Vec<OwnedFd>)> {
        let socket = self.socket();
        Self::say(&socket, request, fd)?;
        let packet = socket::receive(&*socket).map_err(|e| Error::io("hear the broker", e))?;
        answer(packet.ok_or(Error::Closed)?, about)
    }

    /// A request that has no answer, or whose answer is taken later.
    pub(super) fn tell(&self, request: &Request) -> Result<()> {
        Self::say(&self.socket(), request, None)
    }

    fn say(socket: &OwnedFd, request: &Request, fd: Option<BorrowedFd<'_>>) -> Result<()> {
        use std::os::fd::AsRawFd;
        let fds: Vec<_> = fd.iter().map(AsRawFd::as_raw_fd).collect();
        socket::send(socket, &request.encode(), &fds).map_err(|error| match error {
            nix::errno::Errno::EPIPE | nix::errno::Errno::ECONNRESET => Error::Closed,
            other => Error::io("tell the broker", other),
        })
    }

    /// Takes the answer to what was told.
    pub(super) fn hear(&self, about: DomId) -> Result<(Reply, Vec<OwnedFd>)> {
        let packet = socket::receive(&*self.socket()).map_err(|e| Error::io("hear the broker", e))?;
        answer(packet.ok_or(Error::Closed)?, about)
    }

    /// A descriptor of the connection, to wait for what is to be heard.
    pub(super) fn watch(&self) -> Result<OwnedFd> {
        self.socket().as_fd().try_clone_to_owned().map_err(|e| Error::io("watch the broker", e))
    }
}

fn answer(packet: Packet, about: DomId) -> Result<(Reply, Vec<OwnedFd>)> {
    if packet.cut {
        return Err(Error::NoSpace("descriptors for what the broker sent"));
    }
    match Reply::decode(&packet.bytes) {
        Some(Reply::Failed(why, text)) => Err(error(why, text, about)),
        Some(reply) => Ok((reply, packet.fds)),
        None => Err(Error::Protocol("the broker does not speak our language".into())),
    }
}

fn error(why: Failure, text: String, about: DomId) -> Error {
    match why {
        Failure::Protocol => Error::Protocol(text),
        Failure::Denied | Failure::Taken => Error::Denied(text),
        Failure::NoDomain => Error::NoSuchDomain(about),
        // The caller knows the reference and port and fills them in.
        Failure::NoArena => {
            Error::Grant { peer: about, gref: GrantRef::default(), status: super::entry::BAD_REF }
        }
        Failure::NoPort => Error::NoSuchPort { peer: about, port: EventPort::default() },
        Failure::NoSpace => Error::NoSpace("the broker's bound is reached"),
    }
}
