// Not a core: does I/O or calls a hypervisor.

//! What a flush that failed means for a disk: nothing is acknowledged as written any more.
//!
//! After a failed fsync(2) the kernel has dropped what it could not write, and the next one succeeds. A frontend cannot be relied
//! on to notice: Linux's takes an empty flush that fails for one that is not supported, reports success, and flushes no more. So
//! the disk fails every later write and flush, until it is opened again. Only where the medium says that it has no flush is the
//! operation unsupported, and no longer advertised.

use super::{BouncePool, Completion, Engine, IoRequest, Operation};
use nix::errno::Errno;
use std::io;
use std::os::fd::BorrowedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

/// A disk's flushes, as all its engines have seen them.
#[derive(Debug, Default)]
pub struct FlushState {
    failed: AtomicBool,
    unsupported: AtomicBool,
}

impl FlushState {
    /// Wraps one of the disk's engines.
    pub fn guard(self: &Arc<FlushState>, engine: Box<dyn Engine>) -> Box<dyn Engine> {
        Box::new(Guarded { engine, state: self.clone(), failed: Vec::new() })
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

struct Guarded {
    engine: Box<dyn Engine>,
    state: Arc<FlushState>,
    /// Operations that were not started.
    failed: Vec<Completion>,
}

impl Guarded {
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
        self.engine.submit(requests);
    }

    #[inline]
    fn poll(&mut self, completions: &mut Vec<Completion>) -> io::Result<()> {
        completions.append(&mut self.failed);
        let first = completions.len();
        self.engine.poll(completions)?;
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
}
