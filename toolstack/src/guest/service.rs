//! The thread that serves one device: how it is stopped, and how its error is reported.

use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;

use hypervisor::Hypervisor;
use nix::errno::Errno;
use nix::sys::eventfd::{EfdFlags, EventFd};
use tracing::Span;
use xenbus::DeviceEnd;
use xenstore::Client;

use crate::error::{Error, Result, chain};

/// The thread that serves one device. Dropping this stops the thread and waits for it.
pub struct Service {
    stop: Arc<EventFd>,
    /// Set before `ended` is written: `JoinHandle::is_finished` may still be false when the write is seen.
    finished: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Service {
    /// Starts a thread that runs `serve` for the frontend at `path` until the descriptor it is given becomes
    /// readable. Its error is written to the store. `ended` is written when the thread finishes. The thread's log
    /// lines are in `span`.
    ///
    /// # Errors
    /// [`Error::Io`] if a thread or a descriptor cannot be created.
    pub fn start(
        hv: &Arc<dyn Hypervisor>,
        span: Span,
        path: String,
        ended: Arc<EventFd>,
        serve: impl FnOnce(BorrowedFd<'_>) -> Result<()> + Send + 'static,
    ) -> Result<Service> {
        let failed = |e| Error::io("starting a device's thread", e);
        let stop = Arc::new(event().map_err(|e| failed(e.into()))?);
        let finished = Arc::new(AtomicBool::new(false));
        let hv = hv.clone();
        let stop_of_thread = stop.clone();
        let finished_of_thread = finished.clone();
        let run = move || {
            let _entered = span.entered();
            if let Err(error) = serve(stop_of_thread.as_fd()) {
                report_failure(&*hv, &path, &error);
            }
            finished_of_thread.store(true, Ordering::Release);
            // Fails only if the counter is full, in which case the watcher is woken anyway.
            let _ = ended.write(1);
        };
        let thread = std::thread::Builder::new().name("device".into()).spawn(run).map_err(failed)?;
        Ok(Service { stop, finished, thread: Some(thread) })
    }

    /// Whether the device is no longer served.
    pub fn is_finished(&self) -> bool {
        // A thread that panicked did not set the flag.
        self.finished.load(Ordering::Acquire) || self.thread.as_ref().is_none_or(JoinHandle::is_finished)
    }

    /// Signals the thread to stop; does not wait.
    pub fn stop(&self) {
        let _ = self.stop.write(1);
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

/// Reports an error in the log and in the store, and closes the frontend.
fn report_failure(hv: &dyn Hypervisor, path: &str, error: &Error) {
    tracing::error!(error = %chain(error), "failed to serve the device");
    let reported = Client::connect(hv).map_err(Error::from).and_then(|mut client| {
        let end = DeviceEnd::find_front(&mut client, path)?;
        Ok(end.fatal(&mut client, Errno::EIO as i32, chain(error))?)
    });
    if let Err(e) = reported {
        tracing::warn!(error = %chain(&e), "failed to write the error to the store");
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use hypervisor::local::Sandbox;
    use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
    use ring_abi::DomId;

    #[test]
    fn service_is_finished_when_its_event_is_read() {
        let sandbox = Sandbox::new().unwrap();
        let hv: Arc<dyn Hypervisor> = sandbox.join(DomId(1)).unwrap();
        let ended = Arc::new(event().unwrap());
        for _ in 0..100 {
            let service =
                Service::start(&hv, Span::none(), String::new(), ended.clone(), |_| Ok(())).unwrap();
            poll(&mut [PollFd::new(ended.as_fd(), PollFlags::POLLIN)], PollTimeout::from(20_000u16)).unwrap();
            assert!(ended.read().is_ok() && service.is_finished());
        }
    }
}
