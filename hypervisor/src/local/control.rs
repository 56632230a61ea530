//! Control of domains: the requests of a toolstack to the broker.

use super::session::{PATIENCE, PAUSE, Session};
use super::wire::{DomainInfo, Reply, Request, is_name};
use crate::{Error, Result};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use ring_abi::DomId;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

/// A connection that may create, destroy and list domains. It is made again at the successor of a broker that was killed.
#[derive(Debug)]
pub struct Control {
    dir: PathBuf,
    session: Mutex<Arc<Session>>,
}

impl Control {
    /// Connects to the broker in `dir`.
    ///
    /// # Errors
    /// [`Error::Denied`] where this user may not control it; [`Error::Io`] where no broker listens.
    pub fn connect(dir: impl AsRef<Path>) -> Result<Self> {
        let dir = dir.as_ref().to_owned();
        Ok(Self { session: Mutex::new(Arc::new(Session::control(&dir)?)), dir })
    }

    /// Makes a request. Where the broker is killed meanwhile, one that changes nothing is made again at its successor.
    fn call(&self, request: &Request, about: DomId) -> Result<(Reply, Vec<OwnedFd>)> {
        let end = Instant::now() + PATIENCE;
        loop {
            match self.session()?.call(request, None, about) {
                Err(Error::Away) if Instant::now() < end => std::thread::park_timeout(PAUSE),
                Err(Error::Closed) if !changes(request) && Instant::now() < end => {}
                done => return done,
            }
        }
    }

    /// The session with the present broker.
    fn session(&self) -> Result<Arc<Session>> {
        let mut session = self.session.lock().unwrap_or_else(PoisonError::into_inner);
        if session.is_closed() {
            *session = Arc::new(Session::control(&self.dir)?);
        }
        Ok(session.clone())
    }

    /// Creates a domain as which processes of user `uid` may join, one at a time; the broker chooses its number
    /// unless
    /// `domid` is given. Names are unique: 1 to 64 bytes without `/` and control characters, neither `.` nor `..`.
    ///
    /// # Errors
    /// [`Error::Denied`] where the name is invalid, or the name or number is taken.
    pub fn create(&self, name: &str, uid: u32, domid: Option<DomId>) -> Result<DomId> {
        if !is_name(name) {
            return Err(Error::Denied(format!("{name:?} is not a valid name of a domain")));
        }
        let request = Request::Create { uid, domid, name: name.to_owned() };
        match self.call(&request, domid.unwrap_or(DomId::SELF))? {
            (Reply::Domain(info), _) => Ok(info.domid),
            _ => Err(unexpected()),
        }
    }

    /// Destroys a domain: its membership, its arenas and what others granted to it. Its process, if any, is not
    /// killed, but disconnected from the broker.
    ///
    /// # Errors
    /// [`Error::NoSuchDomain`]; [`Error::Denied`] for domain 0.
    pub fn destroy(&self, domid: DomId) -> Result<()> {
        self.call(&Request::Destroy(domid), domid).map(|_| ())
    }

    /// Returns the process that has joined as a domain, as a descriptor of pidfd_open(2): unlike its number it stays the
    /// process's.
    ///
    /// # Errors
    /// [`Error::NoSuchDomain`] where the domain does not exist, or has no process.
    pub fn process(&self, domid: DomId) -> Result<OwnedFd> {
        let (_, fds) = self.call(&Request::Process(domid), domid)?;
        let [process] = <[OwnedFd; 1]>::try_from(fds)
            .map_err(|_| Error::Protocol("the broker sent no process".into()))?;
        Ok(process)
    }

    /// Returns the longest turn of the broker's loop so far, by its thread's processor time.
    ///
    /// # Errors
    /// [`Error::Closed`] or [`Error::Io`] where the connection to the broker fails.
    pub fn longest_turn(&self) -> Result<Duration> {
        match self.call(&Request::LongestTurn, DomId::SELF)? {
            (Reply::Microseconds(time), _) => Ok(Duration::from_micros(time.into())),
            _ => Err(unexpected()),
        }
    }

    /// Returns all domains, in order of their numbers.
    ///
    /// # Errors
    /// [`Error::Closed`] or [`Error::Io`] where the connection to the broker fails.
    pub fn list(&self) -> Result<Vec<DomainInfo>> {
        let mut domains: Vec<DomainInfo> = Vec::new();
        loop {
            let after = domains.last().map(|info| info.domid);
            match self.call(&Request::Next(after), DomId::SELF)? {
                (Reply::Domain(info), _) => domains.push(info),
                (Reply::End, _) => return Ok(domains),
                _ => return Err(unexpected()),
            }
        }
    }

    /// Returns one domain.
    ///
    /// # Errors
    /// [`Error::NoSuchDomain`].
    pub fn get(&self, domid: DomId) -> Result<DomainInfo> {
        self.list()?.into_iter().find(|info| info.domid == domid).ok_or(Error::NoSuchDomain(domid))
    }

    /// Returns a watch that fires once a process has joined as the domain.
    ///
    /// # Errors
    /// [`Error::NoSuchDomain`].
    pub fn await_join(&self, domid: DomId) -> Result<Watch> {
        Watch::new(&self.dir, domid, true)
    }

    /// Returns a watch that fires once the domain has no process, or was destroyed.
    ///
    /// # Errors
    /// [`Error::NoSuchDomain`].
    pub fn await_death(&self, domid: DomId) -> Result<Watch> {
        Watch::new(&self.dir, domid, false)
    }
}

/// A pending wait for a domain. Its descriptor is readable once the wait is over.
#[derive(Debug)]
pub struct Watch {
    session: Session,
    readable: OwnedFd,
    domid: DomId,
}

impl Watch {
    fn new(dir: &Path, domid: DomId, alive: bool) -> Result<Self> {
        let session = Session::control(dir)?;
        session.send(&Request::Await { domid, alive })?;
        Ok(Self { readable: session.duplicate_fd()?, session, domid })
    }

    /// Waits for at most `timeout`; `false` if the time has passed.
    ///
    /// # Errors
    /// [`Error::NoSuchDomain`] where the domain does not exist, or was destroyed before a process joined;
    /// [`Error::Closed`] where the broker has exited.
    pub fn wait(self, timeout: Duration) -> Result<bool> {
        let end = Instant::now() + timeout;
        loop {
            let left = end.saturating_duration_since(Instant::now());
            let left = PollTimeout::try_from(left).unwrap_or(PollTimeout::MAX);
            match poll(&mut [PollFd::new(self.readable.as_fd(), PollFlags::POLLIN)], left) {
                Ok(0) if Instant::now() >= end => return Ok(false),
                Ok(0) | Err(nix::errno::Errno::EINTR) => {}
                Ok(_) => return self.session.receive(self.domid).map(|_| true),
                Err(error) => return Err(Error::io("wait for a domain", error)),
            }
        }
    }
}

impl AsFd for Watch {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.readable.as_fd()
    }
}

/// Whether a request is not made twice: it may have been carried out.
fn changes(request: &Request) -> bool {
    matches!(request, Request::Create { .. } | Request::Destroy(_))
}

fn unexpected() -> Error {
    Error::Protocol("unexpected reply of the broker".into())
}
