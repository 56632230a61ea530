//! A disk's properties as the threads of a device's rings find them, one after the other, for the control thread to advertise.

use std::sync::{Mutex, MutexGuard, PoisonError};

use xenbus::driver::Waker;

use crate::engine::{Disk, DiskInfo};

/// The properties that were found last.
pub(crate) struct DiskWatch {
    /// Held while a thread reads them, so that the last that was found is the last that was read.
    known: Mutex<DiskInfo>,
    /// Those that the control thread has not looked at yet.
    found: Mutex<Option<DiskInfo>>,
    waker: Waker,
}

impl DiskWatch {
    /// A watch of a disk with these properties.
    pub(crate) fn new(known: DiskInfo, waker: Waker) -> DiskWatch {
        DiskWatch { known: Mutex::new(known), found: Mutex::default(), waker }
    }

    /// Reads the disk's properties, which may take long, and wakes the control thread if they have changed.
    pub(crate) fn look(&self, disk: &dyn Disk) {
        let mut known = lock(&self.known);
        match disk.info() {
            Ok(info) if info != *known => {
                *known = info;
                *lock(&self.found) = Some(info);
                self.waker.wake();
            }
            Ok(_) => {}
            Err(error) => tracing::debug!(%error, "failed to read the disk's size"),
        }
    }

    /// Takes the properties that were found last, if nobody has yet.
    pub(crate) fn take(&self) -> Option<DiskInfo> {
        lock(&self.found).take()
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
