// Not a core: does I/O or calls a hypervisor.

//! What a flush that failed means for a disk: nothing is acknowledged as written any more.
//!
//! After a failed fsync(2) the kernel has dropped what it could not write, and the next one succeeds. A frontend cannot be relied
//! on to notice: Linux's takes an empty flush that fails for one that is not supported, reports success, and flushes no more. So
//! the disk fails every later write and flush, until it is opened again. Only where the medium says that it has no flush is the
//! operation unsupported, and no longer advertised.
//!
//! The kernel reports an error once: of two flushes at once, by whichever engines, one fails and the other succeeds, though what it
//! was to cover may be lost. So a flush that succeeded is handed back once all that were in flight with it are complete, and fails
//! if one of them did.

use super::done::lock;
use super::{BouncePool, Completion, Engine, IoRequest, Operation};
use crate::request::Tag;
use nix::errno::Errno;
use nix::sys::eventfd::{EfdFlags, EventFd};
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};

/// A disk's flushes, as all its engines have seen them.
#[derive(Debug, Default)]
pub struct FlushState {
    failed: AtomicBool,
    unsupported: AtomicBool,
    in_flight: Mutex<InFlight>,
}

/// The flushes that are in flight, and who waits for some of them.
#[derive(Debug, Default)]
struct InFlight {
    /// The number of the last one that was started.
    last: u64,
    /// The numbers of those in flight, in any order.
    numbers: Vec<u64>,
    /// Woken when one of them is complete.
    waiting: Vec<Arc<Wakeup>>,
}

/// Tells an engine that a flush of another one is complete.
#[derive(Debug)]
struct Wakeup {
    event: EventFd,
    /// The event was written to.
    woken: AtomicBool,
}

impl Wakeup {
    fn wake(&self) {
        // It cannot fail: the counter is far from its end.
        let _ = self.event.write(1);
        self.woken.store(true, Ordering::Release);
    }

    fn take(&self) -> bool {
        let woken = self.woken.swap(false, Ordering::Acquire);
        if woken {
            let _ = self.event.read();
        }
        woken
    }
}

impl FlushState {
    /// Wraps one of the disk's engines.
    ///
    /// # Errors
    /// There is no descriptor for an event.
    pub fn guard(self: &Arc<FlushState>, engine: Box<dyn Engine>) -> io::Result<Box<dyn Engine>> {
        let event = EventFd::from_flags(EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK)?;
        Ok(Box::new(Guarded {
            engine,
            state: self.clone(),
            failed: Vec::new(),
            flushes: Vec::new(),
            held: Vec::new(),
            wakeup: Arc::new(Wakeup { event, woken: AtomicBool::new(false) }),
        }))
    }

    fn begin(&self) -> u64 {
        let mut in_flight = lock(&self.in_flight);
        in_flight.last += 1;
        let number = in_flight.last;
        in_flight.numbers.push(number);
        number
    }

    /// Ends a flush; if it failed, `failed` is set already. Returns the last that was started until now.
    fn end(&self, number: u64) -> u64 {
        let mut in_flight = lock(&self.in_flight);
        in_flight.numbers.retain(|other| *other != number);
        in_flight.waiting.drain(..).for_each(|wakeup| wakeup.wake());
        in_flight.last
    }

    /// Moves the flushes that no one in flight is as old as to `ready`. If any are left, the wakeup tells when to ask again.
    fn release(&self, held: &mut Vec<Held>, ready: &mut Vec<Completion>, wakeup: &Arc<Wakeup>) {
        let mut in_flight = lock(&self.in_flight);
        let oldest = in_flight.numbers.iter().min().copied().unwrap_or(u64::MAX);
        let released = held.extract_if(.., |held| held.until < oldest);
        ready.extend(released.map(|held| held.completion));
        if !held.is_empty() && !in_flight.waiting.iter().any(|waiting| Arc::ptr_eq(waiting, wakeup)) {
            in_flight.waiting.push(wakeup.clone());
        }
    }

    /// Whether the medium has a flush, as far as is known.
    pub fn is_supported(&self) -> bool {
        !self.unsupported.load(Ordering::Relaxed)
    }

    #[inline]
    fn has_failed(&self) -> bool {
        self.failed.load(Ordering::Relaxed)
    }

    /// Changes what a completed operation is answered with.
    #[cold]
    fn judge(&self, completion: &mut Completion) {
        let operation = completion.request.operation();
        if operation == Operation::Read {
            return;
        }
        match &completion.result {
            Err(error) if operation == Operation::Flush && is_unsupported(error) => {
                completion.result = Err(Errno::EOPNOTSUPP.into());
                if !self.unsupported.swap(true, Ordering::Relaxed) {
                    tracing::warn!("the medium does not support flushes");
                }
            }
            // Only the first one is logged.
            Err(error) if operation == Operation::Flush && !self.failed.swap(true, Ordering::Relaxed) => {
                tracing::error!(%error, "failed to flush: every write fails until the disk is opened again");
            }
            Ok(()) if self.has_failed() => completion.result = Err(Errno::EIO.into()),
            _ => {}
        }
    }
}

/// EINVAL is fdatasync(2)'s error for a file that cannot be synchronized.
fn is_unsupported(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::EOPNOTSUPP | libc::ENOSYS | libc::EINVAL))
}

/// A flush that succeeded, and the last one that was started before that is known.
struct Held {
    completion: Completion,
    until: u64,
}

fn is_flush(request: &IoRequest) -> bool {
    request.operation() == Operation::Flush
}

struct Guarded {
    engine: Box<dyn Engine>,
    state: Arc<FlushState>,
    /// Operations that were not started.
    failed: Vec<Completion>,
    /// The flushes that the engine has, with their numbers.
    flushes: Vec<(Tag, u64)>,
    /// Those that wait for others.
    held: Vec<Held>,
    wakeup: Arc<Wakeup>,
}

impl Guarded {
    #[cold]
    fn begin_flushes(&mut self, requests: &[IoRequest]) {
        let flushes = requests.iter().filter(|request| is_flush(request));
        self.flushes.extend(flushes.map(|request| (request.tag(), self.state.begin())));
    }

    /// Keeps back the flushes that succeeded among `completions`, from `first` on, and adds those that no other is in flight with any
    /// more.
    #[cold]
    fn end_flushes(&mut self, completions: &mut Vec<Completion>, first: usize) {
        let mut until = 0;
        for completion in completions[first..].iter_mut().filter(|completion| is_flush(&completion.request)) {
            let tag = completion.request.tag();
            self.state.judge(completion);
            if let Some(at) = self.flushes.iter().position(|(flush, _)| *flush == tag) {
                until = self.state.end(self.flushes.swap_remove(at).1);
            }
        }
        let succeeded =
            |completion: &mut Completion| is_flush(&completion.request) && completion.result.is_ok();
        let succeeded = completions.extract_if(first.., succeeded);
        self.held.extend(succeeded.map(|completion| Held { completion, until }));
        self.state.release(&mut self.held, completions, &self.wakeup);
    }

    #[cold]
    fn fail_writes(&mut self, requests: &mut Vec<IoRequest>) {
        for request in requests.extract_if(.., |request| request.operation() != Operation::Read) {
            self.failed.push(Completion { request, result: Err(Errno::EIO.into()) });
        }
    }
}

impl Engine for Guarded {
    fn register(&mut self, pool: &BouncePool) -> bool {
        self.engine.register(pool)
    }

    #[inline]
    fn submit(&mut self, requests: &mut Vec<IoRequest>) {
        if self.state.has_failed() {
            self.fail_writes(requests);
        }
        if requests.iter().any(is_flush) {
            self.begin_flushes(requests);
        }
        self.engine.submit(requests);
    }

    #[inline]
    fn poll(&mut self, completions: &mut Vec<Completion>) -> io::Result<()> {
        completions.append(&mut self.failed);
        let first = completions.len();
        self.engine.poll(completions)?;
        let any_flush = || completions[first..].iter().any(|completion| is_flush(&completion.request));
        if (!self.flushes.is_empty() && any_flush()) || (!self.held.is_empty() && self.wakeup.take()) {
            self.end_flushes(completions, first);
        }
        for completion in &mut completions[first..] {
            if completion.result.is_err() || self.state.has_failed() {
                self.state.judge(completion);
            }
        }
        Ok(())
    }

    fn needs_poll(&self) -> bool {
        self.engine.needs_poll() || !self.failed.is_empty()
    }

    fn fd(&self) -> BorrowedFd<'_> {
        self.engine.fd()
    }

    fn discard_fd(&self) -> Option<BorrowedFd<'_>> {
        self.engine.discard_fd()
    }

    fn flush_fd(&self) -> Option<BorrowedFd<'_>> {
        Some(self.wakeup.event.as_fd())
    }
}

impl Drop for Guarded {
    /// What became of a flush that the engine still has nobody will know, and others may wait for it.
    fn drop(&mut self) {
        if !self.flushes.is_empty() && !self.state.failed.swap(true, Ordering::Relaxed) {
            tracing::error!(
                "the engine failed with a flush in flight: every write fails until the disk is opened again"
            );
        }
        for (_, number) in self.flushes.drain(..) {
            self.state.end(number);
        }
    }
}
