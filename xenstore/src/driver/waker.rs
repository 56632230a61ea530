//! How a device's other threads ask the control loop to look at it.

use std::collections::BTreeSet;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::{Arc, Mutex, PoisonError};

use nix::sys::eventfd::{EfdFlags, EventFd};

use super::watched::Id;

/// Asks for one device to be looked at soon; cheap to clone, usable from any thread.
#[derive(Clone, Debug)]
pub struct Waker {
    id: Id,
    wakers: Arc<Wakers>,
}

impl Waker {
    pub(super) fn new(id: Id, wakers: Arc<Wakers>) -> Waker {
        Waker { id, wakers }
    }

    /// Asks for a look. Several before it happens are one.
    pub fn wake(&self) {
        self.wakers.waiting.lock().unwrap_or_else(PoisonError::into_inner).insert(self.id);
        // Fails only when the counter is full, and then the loop is awake anyway.
        let _ = self.wakers.event.write(1);
    }
}

/// Those who asked.
#[derive(Debug)]
pub(super) struct Wakers {
    waiting: Mutex<BTreeSet<Id>>,
    event: EventFd,
}

impl Wakers {
    pub(super) fn new() -> nix::Result<Arc<Wakers>> {
        let event = EventFd::from_flags(EfdFlags::EFD_NONBLOCK | EfdFlags::EFD_CLOEXEC)?;
        Ok(Arc::new(Wakers { waiting: Mutex::default(), event }))
    }

    pub(super) fn fd(&self) -> BorrowedFd<'_> {
        self.event.as_fd()
    }

    /// Takes all who asked.
    pub(super) fn take(&self) -> BTreeSet<Id> {
        // Empty is no error: somebody may have asked between two reads.
        let _ = self.event.read();
        std::mem::take(&mut self.waiting.lock().unwrap_or_else(PoisonError::into_inner))
    }
}
