// Not a core: does I/O or calls a hypervisor.

//! Completions that threads hand over to the thread of the ring.

use super::{Completion, IoRequest};
use nix::sys::eventfd::{EfdFlags, EventFd};
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::{Mutex, MutexGuard, PoisonError};

/// The completions, and a descriptor that is readable while there are any.
pub(super) struct Done {
    completions: Mutex<Vec<Completion>>,
    event: EventFd,
}

impl Done {
    /// With room for so many completions.
    pub(super) fn new(capacity: usize) -> io::Result<Done> {
        let event = EventFd::from_flags(EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK)?;
        Ok(Done { completions: Mutex::new(Vec::with_capacity(capacity)), event })
    }

    /// Hands a request back.
    pub(super) fn push(&self, request: IoRequest, result: io::Result<()>) {
        let mut completions = lock(&self.completions);
        completions.push(Completion { request, result });
        if completions.len() == 1 {
            // It cannot fail: the counter is far from its end.
            let _ = self.event.write(1);
        }
    }

    /// Appends what was handed back.
    pub(super) fn take(&self, into: &mut Vec<Completion>) -> io::Result<()> {
        let mut completions = lock(&self.completions);
        if !completions.is_empty() {
            self.event.read()?;
            into.append(&mut completions);
        }
        Ok(())
    }

    pub(super) fn fd(&self) -> BorrowedFd<'_> {
        self.event.as_fd()
    }
}

/// Locks what no panic leaves inconsistent.
pub(super) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
