//! A disk that serves operations in the order of their coming, some at a time, each in the same time: what rings share of it shows
//! who is preferred above it.

use blkback::engine::{Completion, IoRequest, MediumId};
use blkback::{Disk, DiskInfo, Engine};
use nix::sys::eventfd::{EfdFlags, EventFd};
use std::collections::VecDeque;
use std::io::Result;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, Weak};
use std::time::{Duration, Instant};

/// A disk of zeroes, which are not written to memory. Clones are other disks on the same medium.
#[derive(Clone)]
pub struct FixedTimeDisk(Arc<Medium>);

struct Medium {
    /// The first is being served.
    waiting: Mutex<VecDeque<Operation>>,
    /// Some wait now.
    changed: Condvar,
}

struct Operation {
    request: IoRequest,
    came: Instant,
    done: Arc<Done>,
}

/// What one engine has complete.
struct Done {
    completions: Mutex<Vec<Completion>>,
    event: EventFd,
}

struct FixedTimeEngine {
    medium: Arc<Medium>,
    done: Arc<Done>,
}

impl FixedTimeDisk {
    /// A disk that serves `at_once` operations at a time, each in `time`.
    pub fn new(at_once: usize, time: Duration) -> FixedTimeDisk {
        let medium = Arc::new(Medium { waiting: Mutex::default(), changed: Condvar::new() });
        let of_thread = Arc::downgrade(&medium);
        std::thread::spawn(move || serve(&of_thread, at_once, time));
        FixedTimeDisk(medium)
    }
}

/// Serves until no disk of the medium is left.
fn serve(medium: &Weak<Medium>, at_once: usize, time: Duration) {
    // When each of those that work at a time has ended; in order, as each takes as long.
    let mut ends: VecDeque<Instant> = vec![Instant::now(); at_once].into();
    while let Some(medium) = medium.upgrade() {
        let mut waiting = lock(&medium.waiting);
        let Some(first) = waiting.front() else {
            // Not for ever, as this thread has the medium meanwhile.
            drop(medium.changed.wait_timeout(waiting, Duration::from_millis(10)));
            continue;
        };
        let due = ends.pop_front().map_or(first.came, |end| end.max(first.came)) + time;
        ends.push_back(due);
        while let Some(left) = due.checked_duration_since(Instant::now()).filter(|left| !left.is_zero()) {
            let waited = medium.changed.wait_timeout(waiting, left);
            waiting = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
        // None where its engine is gone.
        if let Some(Operation { request, done, .. }) = waiting.pop_front() {
            drop(waiting);
            lock(&done.completions).push(Completion { request, result: Ok(()) });
            let _ = done.event.write(1);
        }
    }
}

impl Disk for FixedTimeDisk {
    fn name(&self) -> String {
        "a disk of fixed service time".into()
    }

    fn info(&self) -> Result<DiskInfo> {
        Ok(DiskInfo { flush: false, ..DiskInfo::new(1 << 21) })
    }

    fn medium(&self) -> Option<MediumId> {
        Some(MediumId::new(Arc::as_ptr(&self.0).addr() as u64, u64::MAX))
    }

    fn engine(&self, _depth: usize) -> Result<Box<dyn Engine>> {
        let event = EventFd::from_flags(EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK)?;
        let done = Arc::new(Done { completions: Mutex::default(), event });
        Ok(Box::new(FixedTimeEngine { medium: self.0.clone(), done }))
    }
}

impl Engine for FixedTimeEngine {
    fn submit(&mut self, requests: &mut Vec<IoRequest>) {
        let came = Instant::now();
        let operation = |request| Operation { request, came, done: self.done.clone() };
        lock(&self.medium.waiting).extend(requests.drain(..).map(operation));
        self.medium.changed.notify_one();
    }

    fn poll(&mut self, completions: &mut Vec<Completion>) -> Result<()> {
        let _ = self.done.event.read();
        completions.append(&mut lock(&self.done.completions));
        Ok(())
    }

    fn fd(&self) -> BorrowedFd<'_> {
        self.done.event.as_fd()
    }
}

impl Drop for FixedTimeEngine {
    fn drop(&mut self) {
        lock(&self.medium.waiting).retain(|operation| !Arc::ptr_eq(&operation.done, &self.done));
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
