// Not a core: does I/O or calls a hypervisor.

//! What other threads hand over to the thread of a ring: completions, as a rule.

use nix::sys::eventfd::{EfdFlags, EventFd};
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::{Mutex, MutexGuard, PoisonError};

/// What was handed over, and a descriptor that is readable while there is any.
#[derive(Debug)]
pub(super) struct Done<T> {
    list: Mutex<Vec<T>>,
    event: EventFd,
}

impl<T> Done<T> {
    /// With room for so many.
    pub(super) fn new(capacity: usize) -> io::Result<Done<T>> {
        let event = EventFd::from_flags(EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK)?;
        Ok(Done { list: Mutex::new(Vec::with_capacity(capacity)), event })
    }

    /// Hands it over.
    pub(super) fn push(&self, done: T) {
        let mut list = lock(&self.list);
        list.push(done);
        if list.len() == 1 {
            // It cannot fail: the counter is far from its end.
            let _ = self.event.write(1);
        }
    }

    /// Appends what was handed over.
    pub(super) fn take(&self, into: &mut Vec<T>) -> io::Result<()> {
        let mut list = lock(&self.list);
        if !list.is_empty() {
            self.event.read()?;
            into.append(&mut list);
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
