//! The thread that serves one device: how it is started, stopped and joined.

use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;

use nix::sys::eventfd::{EfdFlags, EventFd};
use tracing::Span;

use crate::error::{Error, Result};

/// The thread that serves one device. Dropping this stops the thread and waits for it.
pub struct Service {
    stop: Arc<EventFd>,
    /// Set before `ended` is written: `JoinHandle::is_finished` may still be false when the write is seen.
    finished: Arc<AtomicBool>,
    span: Span,
    thread: Option<JoinHandle<Result<()>>>,
}

impl Service {
    /// Starts a thread that runs `serve` until the descriptor it is given becomes readable. `ended` is written when
    /// the thread finishes. The thread's log lines are in `span`.
    ///
    /// # Errors
    /// [`Error::Io`] if a thread or a descriptor cannot be created.
    pub fn start(
        span: Span,
        ended: Arc<EventFd>,
        serve: impl FnOnce(BorrowedFd<'_>) -> Result<()> + Send + 'static,
    ) -> Result<Service> {
        let failed = |e| Error::io("starting a device's thread", e);
        let stop = Arc::new(event().map_err(|e| failed(e.into()))?);
        let finished = Arc::new(AtomicBool::new(false));
        let stop_of_thread = stop.clone();
        let finished_of_thread = finished.clone();
        let span_of_thread = span.clone();
        let run = move || {
            let _entered = span_of_thread.entered();
            let outcome = serve(stop_of_thread.as_fd());
            finished_of_thread.store(true, Ordering::Release);
            // Fails only if the counter is full, in which case the watcher is woken anyway.
            let _ = ended.write(1);
            outcome
        };
        let thread = std::thread::Builder::new().name("device".into()).spawn(run).map_err(failed)?;
        Ok(Service { stop, finished, span, thread: Some(thread) })
    }

    /// Whether the device is no longer served.
    pub fn is_finished(&self) -> bool {
        // A thread that panicked did not set the flag.
        self.finished.load(Ordering::Acquire) || self.thread.as_ref().is_none_or(JoinHandle::is_finished)
    }

    /// The span of the device's log lines.
    pub fn span(&self) -> &Span {
        &self.span
    }

    /// Signals the thread to stop; does not wait.
    pub fn stop(&self) {
        let _ = self.stop.write(1);
    }

    /// Stops the thread and waits for it.
    ///
    /// # Errors
    /// That of serving the device.
    pub fn join(mut self) -> Result<()> {
        self.stop();
        let outcome = self.thread.take().map(JoinHandle::join);
        outcome.unwrap_or(Ok(Ok(()))).unwrap_or_else(|_| Err(Error::other("the device's thread panicked")))
    }
}

impl Drop for Service {
    fn drop(&mut self) {
        self.stop();
        if let Some(Err(_)) = self.thread.take().map(JoinHandle::join) {
            tracing::error!("a device's thread panicked");
        }
    }
}

/// Creates a non-blocking eventfd.
pub fn event() -> nix::Result<EventFd> {
    EventFd::from_flags(EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK)
}

#[cfg(test)]
mod tests {
    use super::*;
    use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

    #[test]
    fn service_is_finished_when_its_event_is_read() {
        let ended = Arc::new(event().unwrap());
        for _ in 0..100 {
            let service = Service::start(Span::none(), ended.clone(), |_| Ok(())).unwrap();
            poll(&mut [PollFd::new(ended.as_fd(), PollFlags::POLLIN)], PollTimeout::from(20_000u16)).unwrap();
            assert!(ended.read().is_ok() && service.is_finished());
            service.join().unwrap();
        }
    }
}
