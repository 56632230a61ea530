//! The one lock of the process that serves a host's devices, whatever its directory: a second one does nothing until it has it.
//!
//! Two processes that served the same devices would write each other's states over. The lock is the kernel's, on a file that
//! every backend of the host opens: it is free as soon as its holder has ended, however that ended.

use std::fs::File;
use std::os::fd::{AsFd, BorrowedFd};
use std::path::Path;

use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg};
use nix::sys::eventfd::{EfdFlags, EventFd};

use crate::error::{Error, Result};
use crate::machine::process;

/// The file that is locked on a Xen host: no directory that was chosen, and in each domain that serves devices.
pub(crate) const XEN: &str = "/dev/xen/gntdev";

/// The lock, while this value lives.
#[derive(Debug)]
pub(crate) struct ServingLock(#[allow(dead_code)] Flock<File>); // It unlocks when it is dropped.

impl ServingLock {
    /// Waits until no other process has the lock of `path`, as long as it takes; `None` once one of `stops` is readable.
    ///
    /// # Errors
    /// [`Error::File`] if the file cannot be opened or locked.
    pub(crate) fn wait(path: &Path, stops: &[BorrowedFd<'_>]) -> Result<Option<ServingLock>> {
        let open = || File::open(path).map_err(|e| Error::file(path, "opening", e));
        match Flock::lock(open()?, FlockArg::LockExclusiveNonblock) {
            Ok(lock) => return Ok(Some(ServingLock(lock))),
            Err((_, Errno::EWOULDBLOCK)) => {}
            Err((_, e)) => return Err(Error::file(path, "locking", e)),
        }
        tracing::info!("another process serves this host: waiting for its end");
        let file = open()?;
        let flags = EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK;
        let ended = EventFd::from_flags(flags).map_err(|e| Error::io("making an eventfd", e))?;
        let tells =
            ended.as_fd().try_clone_to_owned().map_err(|e| Error::io("duplicating a descriptor", e))?;
        // It waits on when this one is told to stop, until the process ends, which is then.
        let waits = move || {
            let lock = Flock::lock(file, FlockArg::LockExclusive);
            let _ = nix::unistd::write(&tells, &1u64.to_ne_bytes());
            lock
        };
        let waiting = std::thread::Builder::new().name("xpv-standby".into()).spawn(waits);
        let waiting = waiting.map_err(|e| Error::io("starting a thread", e))?;
        process::wait_any(&[stops, &[ended.as_fd()]].concat())?;
        if !waiting.is_finished() && ended.read().is_err() {
            return Ok(None);
        }
        let locked =
            waiting.join().map_err(|_| Error::other("the thread that waits for the lock panicked"))?;
        let lock = locked.map_err(|(_, e)| Error::file(path, "locking", e))?;
        tracing::info!("the other process has ended: serving");
        Ok(Some(ServingLock(lock)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::net::UnixStream;
    use std::sync::mpsc::{TryRecvError, channel};
    use std::time::Duration;

    const BOUND: Duration = Duration::from_secs(60);

    #[test]
    fn second_process_waits_until_the_first_has_ended_or_it_is_told_to_stop() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let path = file.path();
        let (stop, stops) = UnixStream::pair().unwrap();
        let first = ServingLock::wait(path, &[stop.as_fd()]).unwrap().expect("nobody has it");
        let (sender, receiver) = channel();
        std::thread::scope(|scope| {
            let stop = &stop;
            let second = scope.spawn(move || {
                let lock = ServingLock::wait(path, &[stop.as_fd()]).unwrap();
                sender.send(lock.is_some()).unwrap();
                lock
            });
            // A third one beside it is told to stop.
            let (own_stop, own_stops) = UnixStream::pair().unwrap();
            let third = scope.spawn(move || ServingLock::wait(path, &[own_stop.as_fd()]).unwrap().is_none());
            drop(own_stops);
            assert!(third.join().unwrap());
            assert_eq!(receiver.try_recv(), Err(TryRecvError::Empty));
            drop(first);
            // The third one's thread may have it first, as this process has not ended.
            assert!(receiver.recv_timeout(BOUND).unwrap());
            assert!(second.join().unwrap().is_some());
        });
        drop(stops);
    }
}
