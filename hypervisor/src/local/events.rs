//! The pipes that events travel through, and why they are no eventfds.
//!
//! Both ends of an eventfd share one open file, and with it `O_NONBLOCK`: a hostile peer could clear it, fill the
//! counter and so block whoever notifies it. A pipe has a file for each end. Its reader also sees, without anybody's
//! help, that the last writer is gone.
#![allow(unsafe_code)] // Reads into memory that is not zeroed first.

use crate::{Error, Result};
use nix::errno::Errno;
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::unistd::{pipe2, write};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

/// Bytes, and thus events that were sent and not taken, that a pipe holds: the least that Linux can do.
const CAPACITY: usize = 4096;

/// The end of a domain: takes events of the peer and sends it some.
#[derive(Debug)]
pub(super) struct EventPipes {
    pub(super) incoming: OwnedFd,
    pub(super) outgoing: OwnedFd,
}

impl EventPipes {
    /// Two ends that belong together.
    ///
    /// # Errors
    /// The system's.
    pub(super) fn pair() -> Result<(Self, Self)> {
        let (a_in, b_out) = pipe()?;
        let (b_in, a_out) = pipe()?;
        Ok((Self { incoming: a_in, outgoing: a_out }, Self { incoming: b_in, outgoing: b_out }))
    }

    /// Sends an event; one that cannot be stored merges with those that are.
    ///
    /// # Errors
    /// [`Error::Closed`].
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
    /// [`Error::Closed`].
    pub(super) fn take(&self) -> Result<bool> {
        let mut bytes = MaybeUninit::<[u8; CAPACITY]>::uninit();
        // SAFETY: the buffer has room for CAPACITY bytes; none of them is looked at.
        let got = unsafe { libc::read(self.incoming.as_raw_fd(), bytes.as_mut_ptr().cast(), CAPACITY) };
        match Errno::result(got) {
            Ok(0) => Err(Error::Closed),
            Ok(_) => Ok(true),
            Err(Errno::EAGAIN | Errno::EINTR) => Ok(false),
            Err(error) => Err(Error::io("take an event", error)),
        }
    }

    /// Readable while an event is pending or the peer is gone.
    pub(super) fn fd(&self) -> BorrowedFd<'_> {
        self.incoming.as_fd()
    }
}

fn pipe() -> Result<(OwnedFd, OwnedFd)> {
    let flags = OFlag::O_CLOEXEC | OFlag::O_NONBLOCK;
    let (read, write) = pipe2(flags).map_err(|e| Error::io("make an event channel", e))?;
    fcntl(&write, FcntlArg::F_SETPIPE_SZ(CAPACITY as i32))
        .map_err(|e| Error::io("size an event channel", e))?;
    Ok((read, write))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn events_merge_and_never_block() {
        let (a, b) = EventPipes::pair().unwrap();
        for _ in 0..3 * CAPACITY {
            a.notify().unwrap();
        }
        assert!(b.take().unwrap());
        assert!(!b.take().unwrap());
        assert!(!a.take().unwrap());
    }

    #[test]
    fn a_peer_cannot_make_us_block() {
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
    fn what_was_pending_comes_before_the_end() {
        let (a, b) = EventPipes::pair().unwrap();
        a.notify().unwrap();
        drop(a);
        assert!(b.take().unwrap());
        assert!(matches!(b.take(), Err(Error::Closed)));
        assert!(matches!(b.notify(), Err(Error::Closed)));
    }
}
