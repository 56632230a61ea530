//! A domain's membership as its process has it, which may outlive the broker: one that was killed is succeeded by another,
//! at which the process takes it up again with its arenas and ports.
//!
//! What is shared, mapped and bound works on without a broker. Calls that need one wait for the successor, for a bounded time.

mod resume;

use super::session::{PATIENCE, PAUSE, Session};
use super::token::Token;
use super::wire::{Reply, Request};
use crate::{Error, Result};
use ring_abi::{DomId, EventPort};
use std::collections::{BTreeMap, BTreeSet};
use std::os::fd::{BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

pub(super) use resume::Attempt;

/// The membership of a domain. It ends when this is dropped.
#[derive(Debug)]
pub(super) struct Membership {
    dir: PathBuf,
    domid: DomId,
    /// `None` where the broker has no successor: the membership ends with it.
    token: Option<Token>,
    link: Mutex<Link>,
    /// Notified when the link's state changes.
    changed: Condvar,
}

/// The session with the present broker, and what a successor has to be told.
#[derive(Debug)]
struct Link {
    state: State,
    session: Arc<Session>,
    /// The arenas that are offered, with their sizes in pages.
    arenas: BTreeMap<DomId, (OwnedFd, u32)>,
    ports: BTreeSet<u32>,
}

#[derive(Clone, Copy, Debug)]
enum State {
    Joined,
    /// The broker is gone since then.
    Away(Instant),
    Ended,
}

impl Membership {
    /// Joins as a domain.
    ///
    /// # Errors
    /// As [`Session::join`].
    pub(super) fn join(dir: &Path, domid: DomId) -> Result<Self> {
        let (session, token) = Session::join(dir, domid)?;
        let link = Link {
            state: State::Joined,
            session: Arc::new(session),
            arenas: BTreeMap::new(),
            ports: BTreeSet::new(),
        };
        Ok(Self { dir: dir.to_owned(), domid, token, link: Mutex::new(link), changed: Condvar::new() })
    }

    /// The domain that has joined.
    pub(super) fn domid(&self) -> DomId {
        self.domid
    }

    /// Sends a request that concerns domain `about`, and receives its reply. Without a broker its successor is waited for.
    ///
    /// # Errors
    /// The broker's refusal; [`Error::Closed`] where the membership has ended; [`Error::Away`] where no successor has come
    /// within [`PATIENCE`]; [`Error::Io`] where the broker does not reply in time.
    pub(super) fn call(
        &self,
        request: &Request,
        fd: Option<BorrowedFd<'_>>,
        about: DomId,
    ) -> Result<(Reply, Vec<OwnedFd>)> {
        let end = Instant::now() + PATIENCE;
        loop {
            let session = self.session_until(end)?;
            match session.call(request, fd, about) {
                // Whatever it has done is lost with it, so that the request is made again.
                Err(Error::Closed) => self.lose(&session),
                Err(Error::Away) if Instant::now() < end => std::thread::park_timeout(PAUSE),
                done => return done,
            }
        }
    }

    /// As [`Membership::call`], but a successor is not waited for, by the thread that looks for it: of a broker that waits for
    /// others the request is made again.
    ///
    /// # Errors
    /// As [`Membership::call_now`].
    pub(super) fn call_present(&self, request: &Request, about: DomId) -> Result<(Reply, Vec<OwnedFd>)> {
        let end = Instant::now() + PATIENCE;
        loop {
            let session = self.session_until(Instant::now())?;
            match session.call(request, None, about) {
                Err(Error::Away) if Instant::now() < end => std::thread::park_timeout(PAUSE),
                done => return done,
            }
        }
    }

    /// As [`Membership::call`], but without a broker it fails at once: for threads that serve rings meanwhile.
    ///
    /// # Errors
    /// As [`Membership::call`].
    pub(super) fn call_now(&self, request: &Request, about: DomId) -> Result<(Reply, Vec<OwnedFd>)> {
        let session = self.session_until(Instant::now())?;
        match session.call(request, None, about) {
            Err(Error::Closed) => {
                self.lose(&session);
                Err(if self.has_ended() { Error::Closed } else { Error::Away })
            }
            done => done,
        }
    }

    /// Offers an arena to a peer, at this broker and its successors.
    ///
    /// # Errors
    /// As [`Membership::call`].
    pub(super) fn offer(&self, peer: DomId, fd: BorrowedFd<'_>, pages: u32) -> Result<()> {
        let kept =
            fd.try_clone_to_owned().map_err(|e| Error::io("duplicate the descriptor of an arena", e))?;
        // Before the call, as the broker may be succeeded as soon as it has replied.
        let before = self.link().arenas.insert(peer, (kept, pages));
        drop(before);
        let offered = self.call(&Request::Offer { peer, pages }, Some(fd), peer);
        if offered.is_err() {
            self.link().arenas.remove(&peer);
        }
        offered.map(drop)
    }

    /// Enters a port that the broker has allocated.
    pub(super) fn keep_port(&self, port: EventPort) {
        self.link().ports.insert(port.0);
    }

    /// Frees a port.
    pub(super) fn close_port(&self, port: EventPort) {
        let mut link = self.link();
        link.ports.remove(&port.0);
        if matches!(link.state, State::Joined) {
            // Fails where the broker is gone: its successor is not told of the port.
            let _ = link.session.send(&Request::Close(port));
        }
    }

    /// A descriptor of the session, which hangs up with it.
    pub(super) fn duplicate_fd(&self) -> Result<OwnedFd> {
        self.link().session.duplicate_fd()
    }

    /// Whether the membership has ended.
    pub(super) fn has_ended(&self) -> bool {
        matches!(self.link().state, State::Ended)
    }

    /// The session, once there is one.
    fn session_until(&self, end: Instant) -> Result<Arc<Session>> {
        let mut link = self.link();
        loop {
            match link.state {
                State::Joined => return Ok(link.session.clone()),
                State::Ended => return Err(Error::Closed),
                State::Away(_) => {
                    let left = end.saturating_duration_since(Instant::now());
                    if left.is_zero() {
                        return Err(Error::Away);
                    }
                    let waited = self.changed.wait_timeout(link, left);
                    link = waited.unwrap_or_else(PoisonError::into_inner).0;
                }
            }
        }
    }

    /// Records that a session has ended. The thread that follows the broker makes another.
    fn lose(&self, session: &Arc<Session>) {
        let mut link = self.link();
        if matches!(link.state, State::Joined) && Arc::ptr_eq(&link.session, session) {
            self.set(&mut link, State::Away(Instant::now()));
        }
    }

    fn set(&self, link: &mut Link, state: State) {
        link.state = match state {
            State::Away(_) if self.token.is_none() => State::Ended,
            state => state,
        };
        self.changed.notify_all();
    }

    fn link(&self) -> MutexGuard<'_, Link> {
        // A panic cannot leave it inconsistent: no code under the lock panics between two related changes.
        self.link.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Membership {
    fn drop(&mut self) {
        // The thread that follows the broker has a descriptor of it, and is woken.
        self.link().session.end();
    }
}
