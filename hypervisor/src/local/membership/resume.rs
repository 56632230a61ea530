//! How a membership is taken up again at the successor of a broker that was killed.

use super::{Link, Membership, State};
use crate::local::arena;
use crate::local::layout::Layout;
use crate::local::session::{PAUSE, Session};
use crate::local::wire::Request;
use crate::{Error, Result};
use ring_abi::{DomId, EventPort};
use std::io::ErrorKind;
use std::os::fd::AsFd;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// How long a successor is waited for. Without one the machine is gone.
const LONGEST: Duration = Duration::from_secs(60);

/// The outcome of one attempt to take a membership up.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(in crate::local) enum Attempt {
    /// The membership goes on.
    Resumed,
    /// There is no broker yet.
    Away,
    /// The machine was stopped, or the broker does not know this process.
    Ended,
}

impl Membership {
    /// Tries once to take the membership up again, after the session has hung up.
    pub(in crate::local) fn try_resume(&self) -> Attempt {
        let since = {
            let mut link = self.link();
            if matches!(link.state, State::Joined) {
                if !link.session.is_closed() {
                    return Attempt::Resumed;
                }
                self.set(&mut link, State::Away(Instant::now()));
            }
            match link.state {
                State::Away(since) => since,
                _ => return Attempt::Ended,
            }
        };
        match self.resume() {
            Ok(()) => {
                tracing::info!(domid = %self.domid, "the broker was restarted; the membership goes on");
                Attempt::Resumed
            }
            Err(error) if is_away(&error) && since.elapsed() < LONGEST => Attempt::Away,
            Err(error) => {
                tracing::debug!(domid = %self.domid, %error, "the membership has ended");
                let mut link = self.link();
                self.set(&mut link, State::Ended);
                Attempt::Ended
            }
        }
    }

    fn resume(&self) -> Result<()> {
        let token = self.token.ok_or(Error::Closed)?;
        let session = Session::rejoin(&self.dir, self.domid, token)?;
        // No call is made meanwhile, nor is a port freed.
        let mut link = self.link();
        self.restore(&session, &mut link)?;
        link.session = Arc::new(session);
        self.set(&mut link, State::Joined);
        Ok(())
    }

    /// Offers the arenas and takes up the ports once more.
    fn restore(&self, session: &Session, link: &mut Link) -> Result<()> {
        let mut unused = Vec::new();
        for (peer, (fd, pages)) in &link.arenas {
            let layout = Layout::new(*pages).ok_or(Error::NoSpace("arenas of that size"))?;
            if arena::map_temporarily(fd, layout)?.is_retired() {
                unused.push(*peer);
                continue;
            }
            let request = Request::Offer { peer: *peer, pages: *pages };
            match call(session, &request, Some(fd.as_fd()), *peer) {
                // The peer was destroyed, and the broker killed before it has retired the arena.
                Err(Error::NoSuchDomain(_)) => {
                    arena::retire(fd, layout)?;
                    unused.push(*peer);
                }
                offered => offered?,
            }
        }
        unused.iter().for_each(|peer| drop(link.arenas.remove(peer)));
        for port in &link.ports {
            call(session, &Request::RestorePort(EventPort(*port)), None, self.domid)?;
        }
        call(session, &Request::Resumed, None, self.domid)
    }
}

/// Makes a request again that the broker puts off, as it is still closing descriptors of this domain.
fn call(
    session: &Session,
    request: &Request,
    fd: Option<std::os::fd::BorrowedFd<'_>>,
    about: DomId,
) -> Result<()> {
    let end = Instant::now() + super::PATIENCE;
    loop {
        match session.call(request, fd, about) {
            Err(Error::Away) if Instant::now() < end => std::thread::park_timeout(PAUSE),
            done => return done.map(drop),
        }
    }
}

/// Whether the broker, or its successor, is gone, and another may come. The socket of one that was stopped is removed.
fn is_away(error: &Error) -> bool {
    match error {
        Error::Closed | Error::Away => true,
        Error::Io { error, .. } => matches!(
            error.kind(),
            ErrorKind::ConnectionRefused | ErrorKind::ConnectionReset | ErrorKind::WouldBlock
        ),
        _ => false,
    }
}
