//! A device in service: a thread, a way to stop it, and a place to say why it ended.

use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;

use hypervisor::Hypervisor;
use nix::errno::Errno;
use nix::sys::eventfd::{EfdFlags, EventFd};
use xenstore::Client;
use xenstore::xenbus::DeviceEnd;

use crate::error::{Error, Result};

/// A device's thread. Dropping it tells the thread to stop, and waits until it has.
pub struct Service {
    stop: Arc<EventFd>,
    /// Set before the watcher is told: the thread itself is seen to be finished only a moment after that.
    over: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Service {
    /// Starts a thread that serves the frontend at `path` until the descriptor it is given becomes readable. Why it
    /// failed is told where toolstacks look; `ended` is written to when it is over.
    ///
    /// # Errors
    /// The system refuses a thread or a descriptor.
    pub fn start(
        hv: &Arc<dyn Hypervisor>,
        path: String,
        ended: Arc<EventFd>,
        serve: impl FnOnce(BorrowedFd<'_>) -> Result<()> + Send + 'static,
    ) -> Result<Service> {
        let failed = |e| Error::io("starting a device's thread", e);
        let stop = Arc::new(event().map_err(|e| failed(e.into()))?);
        let over = Arc::new(AtomicBool::new(false));
        let (theirs, hv, is_over) = (stop.clone(), hv.clone(), over.clone());
        let body = move || {
            if let Err(error) = serve(theirs.as_fd()) {
                complain(&*hv, &path, &error);
            }
            is_over.store(true, Ordering::Release);
            // Fails only when the counter is full, and then the watcher is awake anyway.
            let _ = ended.write(1);
        };
        let thread = std::thread::Builder::new().name("device".into()).spawn(body).map_err(failed)?;
        Ok(Service { stop, over, thread: Some(thread) })
    }

    /// Whether the device is served no more.
    pub fn is_over(&self) -> bool {
        // A thread that panicked says nothing.
        self.over.load(Ordering::Acquire) || self.thread.as_ref().is_none_or(JoinHandle::is_finished)
    }

    /// Tells the thread to stop; does not wait.
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

/// An eventfd that is never waited for in a read.
///
/// # Errors
/// No descriptors left.
pub fn event() -> nix::Result<EventFd> {
    EventFd::from_flags(EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK)
}

/// Says why a device is not served, in the store and in the log, and closes its frontend.
fn complain(hv: &dyn Hypervisor, path: &str, error: &Error) {
    tracing::error!(device = path, "{error}");
    let told = hv.store().map_err(Error::from).and_then(|stream| {
        let mut client = Client::new(stream);
        let end = DeviceEnd::find_front(&mut client, path)?;
        Ok(end.fatal(&mut client, Errno::EIO as i32, error)?)
    });
    if let Err(e) = told {
        tracing::warn!(device = path, "and it cannot be told: {e}");
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use hypervisor::DomId;
    use hypervisor::local::Sandbox;
    use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

    #[test]
    fn whoever_is_told_of_the_end_sees_it() {
        let sandbox = Sandbox::new().unwrap();
        let hv: Arc<dyn Hypervisor> = sandbox.join(DomId(1)).unwrap();
        let ended = Arc::new(event().unwrap());
        for _ in 0..100 {
            let service = Service::start(&hv, String::new(), ended.clone(), |_| Ok(())).unwrap();
            poll(&mut [PollFd::new(ended.as_fd(), PollFlags::POLLIN)], PollTimeout::from(20_000u16)).unwrap();
            assert!(ended.read().is_ok() && service.is_over());
        }
    }
}
