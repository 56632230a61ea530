// Not a core: does I/O or calls a hypervisor.

//! Wakes a loop for some of the things that it serves, from any thread.

use std::collections::BTreeSet;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::{Arc, Mutex, PoisonError};

use nix::sys::eventfd::{EfdFlags, EventFd};

/// A set of ids that were woken, with a descriptor that is readable while there are any. Clones share the set.
///
/// ```
/// use event_loop::{EventSet, Waker};
/// use std::time::Duration;
///
/// const WAKER: u64 = 0;
/// let waker = Waker::new()?;
/// let set = EventSet::new()?;
/// set.add(&waker, WAKER)?;
///
/// let other = waker.clone();
/// std::thread::spawn(move || other.wake(51712)).join().unwrap();
/// waker.wake(51712);
///
/// assert!(set.wait(Some(Duration::from_secs(10)))?.contains(WAKER));
/// assert_eq!(waker.take().into_iter().collect::<Vec<_>>(), [51712]);
/// assert!(!set.wait(Some(Duration::ZERO))?.contains(WAKER));
/// # Ok::<(), std::io::Error>(())
/// ```
#[derive(Debug)]
pub struct Waker<T> {
    shared: Arc<Shared<T>>,
}

#[derive(Debug)]
struct Shared<T> {
    woken: Mutex<BTreeSet<T>>,
    event: EventFd,
}

impl<T: Ord> Waker<T> {
    /// Makes an empty set.
    ///
    /// # Errors
    /// `eventfd` fails, as when the process has no descriptors left.
    pub fn new() -> io::Result<Self> {
        let event = EventFd::from_flags(EfdFlags::EFD_NONBLOCK | EfdFlags::EFD_CLOEXEC)?;
        Ok(Self { shared: Arc::new(Shared { woken: Mutex::new(BTreeSet::new()), event }) })
    }

    /// Wakes the loop for `id`. Several wakes before [`Waker::take`] are one.
    pub fn wake(&self, id: T) {
        self.shared.woken.lock().unwrap_or_else(PoisonError::into_inner).insert(id);
        // Fails only when the counter is full, and then the descriptor is readable anyway.
        let _ = self.shared.event.write(1);
    }

    /// Takes all ids woken since the last call.
    pub fn take(&self) -> BTreeSet<T> {
        // EAGAIN is no error: an earlier call may have read the event of an id that it has already taken.
        let _ = self.shared.event.read();
        std::mem::take(&mut self.shared.woken.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

impl<T> Clone for Waker<T> {
    fn clone(&self) -> Self {
        Self { shared: self.shared.clone() }
    }
}

impl<T> AsFd for Waker<T> {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.shared.event.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_woken_from_threads_are_each_taken_once() {
        let waker = Waker::new().unwrap();
        std::thread::scope(|scope| {
            for thread in 0..4 {
                let waker = waker.clone();
                scope.spawn(move || (0..100).for_each(|id| waker.wake((thread, id % 10))));
            }
        });
        let expected: BTreeSet<_> = (0..4).flat_map(|thread| (0..10).map(move |id| (thread, id))).collect();
        assert_eq!(waker.take(), expected);
        assert!(waker.take().is_empty());
    }
}
