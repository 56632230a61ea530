// Not a core: does I/O or calls a hypervisor.

//! Lets a device's other threads wake the control loop.

use std::collections::BTreeSet;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::{Arc, Mutex, PoisonError};

use nix::sys::eventfd::{EfdFlags, EventFd};

use super::target::Id;

/// Makes the control loop call one device's [`BackDevice::changed`](super::BackDevice::changed) soon; cheap to clone,
/// usable from any thread.
#[derive(Clone, Debug)]
pub struct Waker {
    id: Id,
    wakers: Arc<Wakers>,
}

impl Waker {
    pub(super) fn new(id: Id, wakers: Arc<Wakers>) -> Waker {
        Waker { id, wakers }
    }

    /// Wakes the control loop for this device. Several wakes before it runs are one.
    pub fn wake(&self) {
        self.wakers.woken.lock().unwrap_or_else(PoisonError::into_inner).insert(self.id);
        // Fails only when the counter is full, and then the loop is awake anyway.
        let _ = self.wakers.event.write(1);
    }
}

/// The devices woken since the control loop last took them.
#[derive(Debug)]
pub(super) struct Wakers {
    woken: Mutex<BTreeSet<Id>>,
    event: EventFd,
}

impl Wakers {
    pub(super) fn new() -> nix::Result<Arc<Wakers>> {
        let event = EventFd::from_flags(EfdFlags::EFD_NONBLOCK | EfdFlags::EFD_CLOEXEC)?;
        Ok(Arc::new(Wakers { woken: Mutex::default(), event }))
    }

    pub(super) fn fd(&self) -> BorrowedFd<'_> {
        self.event.as_fd()
    }

    /// Takes all woken devices.
    pub(super) fn take(&self) -> BTreeSet<Id> {
        // EAGAIN is no error: an earlier call may have read the event of a device that it has already taken.
        let _ = self.event.read();
        std::mem::take(&mut self.woken.lock().unwrap_or_else(PoisonError::into_inner))
    }
}
