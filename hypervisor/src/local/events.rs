//! Event channels as pairs of pipes, not eventfds.
//!
//! Both ends of an eventfd share one open file description, and with it `O_NONBLOCK`: a hostile peer could clear the
//! flag, fill the counter and so block the thread that notifies it. A pipe has an open file description for each end.
//! Its reader also sees the hang-up when the last writer is closed, without the broker's help.
#![allow(unsafe_code)] // Reads into memory that is not zeroed first.

use crate::{Error, Result};
use nix::errno::Errno;
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::unistd::{pipe2, write};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

/// The pipe's capacity in bytes, one for each event not taken yet: the smallest that Linux supports.
const CAPACITY: usize = 4096;

/// One domain's end of an event channel: one pipe from the peer, one to it.
#[derive(Debug)]
pub(super) struct EventPipes {
    pub(super) incoming: OwnedFd,
    pub(super) outgoing: OwnedFd,
}

impl EventPipes {
    /// Creates the two ends of an event channel.
    ///
    /// # Errors
    /// [`Error::Io`] if the process has no descriptors left.
    pub(super) fn pair() -> Result<(Self, Self)> {
        let (a_in, b_out) = pipe()?;
        let (b_in, a_out) = pipe()?;
        Ok((Self { incoming: a_in, outgoing: a_out }, Self { incoming: b_in, outgoing: b_out }))
    }

    /// Sends an event; if the pipe is full it merges with the pending ones.
    ///
    /// # Errors
    /// [`Error::Closed`] where the peer's end is closed.
    pub(super) fn notify(&self) -> Result<()> {
        match write(&self.outgoing, &[0]) {
            Ok(_) | Err(Errno::EAGAIN | Errno::EINTR) => Ok(()),
            Err(Errno::EPIPE) => Err(Error::Closed),
            Err(error) => Err(Error::io("notify", error)),
        }
    }

    /// Takes all pending events; `false` if there were none.
    ///
    /// # Errors
    /// [`Error::Closed`] where nothing is pending and the peer's end is closed.
    pub(super) fn take(&self) -> Result<bool> {
        let mut bytes = MaybeUninit::<[u8; CAPACITY]>::uninit();
        // SAFETY: the buffer has room for CAPACITY bytes; they are never read.
        let got = unsafe { libc::read(self.incoming.as_raw_fd(), bytes.as_mut_ptr().cast(), CAPACITY) };
        match Errno::result(got) {
            Ok(0) => Err(Error::Closed),
            Ok(_) => Ok(true),
            Err(Errno::EAGAIN | Errno::EINTR) => Ok(false),
            Err(error) => Err(Error::io("take an event", error)),
        }
    }

    /// The descriptor that is readable while an event is pending or the peer's end is closed.
    pub(super) fn fd(&self) -> BorrowedFd<'_> {
        self.incoming.as_fd()
    }
}

fn pipe() -> Result<(OwnedFd, OwnedFd)> {
    let flags = OFlag::O_CLOEXEC | OFlag::O_NONBLOCK;
    let (read, write) = pipe2(flags).map_err(|e| Error::io("create an event channel", e))?;
    fcntl(&write, FcntlArg::F_SETPIPE_SZ(CAPACITY as i32))
        .map_err(|e| Error::io("set the capacity of an event channel", e))?;
    Ok((read, write))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn notify_of_a_full_pipe_merges_and_does_not_block() {
        let (a, b) = EventPipes::pair().unwrap();
        for _ in 0..3 * CAPACITY {
            a.notify().unwrap();
        }
        assert!(b.take().unwrap());
        assert!(!b.take().unwrap());
        assert!(!a.take().unwrap());
    }

    #[test]
    fn peer_that_clears_o_nonblock_does_not_make_this_end_block() {
        let (a, b) = EventPipes::pair().unwrap();
        for fd in [&b.incoming, &b.outgoing] {
            fcntl(fd, FcntlArg::F_SETFL(OFlag::empty())).unwrap();
        }
        for _ in 0..3 * CAPACITY {
            a.notify().unwrap();
        }
        assert!(!a.take().unwrap());
    }

    #[test]
    fn take_after_the_peer_closed_returns_pending_events_first() {
        let (a, b) = EventPipes::pair().unwrap();
        a.notify().unwrap();
        drop(a);
        assert!(b.take().unwrap());
        assert!(matches!(b.take(), Err(Error::Closed)));
        assert!(matches!(b.notify(), Err(Error::Closed)));
    }
}
