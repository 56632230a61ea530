//! The thread of a member that follows the broker: it takes up the membership at a broker's successor, and unmaps the arenas
//! of peers that have exited.

use super::membership::{Attempt, Membership};
use super::peer_slots::PeerSlots;
use super::wire::Request;
use crate::{Error, Result};
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::unistd::read;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::{Arc, Weak};
use std::time::Duration;

/// The pause between two attempts to reach a successor.
const RETRY: Duration = Duration::from_millis(20);

/// Follows the broker for a membership, which it does not keep alive.
struct Follower {
    membership: Weak<Membership>,
    peers: Weak<PeerSlots>,
    /// Hangs up with the session.
    session: OwnedFd,
    /// Readable when an arena was retired that a peer offers.
    retirements: Option<OwnedFd>,
}

/// Starts the thread, which ends with the membership.
///
/// # Errors
/// [`Error::Io`] where the thread cannot be started.
pub(super) fn start(membership: &Arc<Membership>, peers: &Arc<PeerSlots>) -> Result<()> {
    let follower = Follower {
        membership: Arc::downgrade(membership),
        peers: Arc::downgrade(peers),
        session: membership.duplicate_fd()?,
        retirements: retirements(membership),
    };
    let run = move || {
        if let Err(error) = follower.run() {
            tracing::error!(%error, "failed to follow the broker");
        }
    };
    let thread = std::thread::Builder::new().name("xpv-member".into()).spawn(run);
    thread.map(drop).map_err(|e| Error::io("start a thread that follows the broker", e))
}

/// Requests the pipe that says when an arena was retired.
fn retirements(membership: &Membership) -> Option<OwnedFd> {
    match membership.call_present(&Request::Retirements, membership.domid()) {
        Ok((_, fds)) => fds.into_iter().next(),
        // Its successor is asked.
        Err(Error::Closed | Error::Away) => None,
        Err(error) => {
            tracing::warn!(%error, "exited peers' memory stays mapped until another peer's is");
            None
        }
    }
}

impl Follower {
    fn run(mut self) -> Result<()> {
        while !self.wait()? || self.resume()? {}
        Ok(())
    }

    /// Waits until the session hangs up, or an arena was retired; returns whether it has hung up.
    fn wait(&mut self) -> Result<bool> {
        let mut fds = vec![PollFd::new(self.session.as_fd(), PollFlags::empty())];
        fds.extend(self.retirements.as_ref().map(|pipe| PollFd::new(pipe.as_fd(), PollFlags::POLLIN)));
        match poll(&mut fds, PollTimeout::NONE) {
            Ok(_) | Err(Errno::EINTR) => {}
            Err(error) => return Err(Error::io("follow the broker", error)),
        }
        let hung_up = fds[0].any().unwrap_or(false);
        if fds.get(1).and_then(PollFd::any).unwrap_or(false) {
            self.take_retirements();
        }
        Ok(hung_up)
    }

    fn take_retirements(&mut self) {
        let Some(pipe) = &self.retirements else { return };
        match read(pipe, &mut [0; 64]) {
            Ok(0) => self.retirements = None,
            Ok(_) => self.peers.upgrade().iter().for_each(|peers| peers.unmap_retired()),
            Err(Errno::EINTR | Errno::EAGAIN) => {}
            Err(error) => {
                tracing::error!(%error, "failed to read what arenas are retired");
                self.retirements = None;
            }
        }
    }

    /// Takes up the membership again; `false` where it has ended.
    fn resume(&mut self) -> Result<bool> {
        loop {
            let Some(membership) = self.membership.upgrade() else { return Ok(false) };
            match membership.try_resume() {
                Attempt::Resumed => {
                    self.session = membership.duplicate_fd()?;
                    self.retirements = retirements(&membership);
                    self.retire_lost(&membership);
                    return Ok(true);
                }
                Attempt::Ended => return Ok(false),
                Attempt::Away => {}
            }
            drop(membership);
            std::thread::park_timeout(RETRY);
        }
    }

    /// Retires the arenas of peers that have not come back to the new broker: it does not know these arenas.
    fn retire_lost(&self, membership: &Membership) {
        let Some(peers) = self.peers.upgrade() else { return };
        for slot in peers.mapped() {
            let owner = slot.owner;
            // Where the broker is killed once more, its successor is asked about all.
            let answer = membership.call_present(&Request::HasResumed(owner), owner);
            if matches!(answer, Err(Error::NoSuchDomain(_))) {
                slot.retire();
            }
        }
    }
}
