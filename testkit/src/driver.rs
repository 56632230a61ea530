//! A backend driver's control loop in a thread.

use nix::sys::eventfd::{EfdFlags, EventFd};
use std::os::fd::AsFd;
use std::sync::Arc;
use std::thread::JoinHandle;
use xenbus::driver::{BackDriver, Registry};
use xenstore::{Client, DomId};

/// A thread that runs a backend driver until it is stopped or dropped.
pub struct DriverThread {
    stop: Arc<EventFd>,
    thread: Option<JoinHandle<()>>,
}

impl DriverThread {
    /// Starts a thread that runs the driver made by `make`, with dom0's connection to the store.
    pub fn spawn<D: BackDriver>(client: Client, make: impl FnOnce() -> D + Send + 'static) -> DriverThread {
        DriverThread::spawn_registered(client, Registry::default(), make)
    }

    /// Starts a thread as [`DriverThread::spawn`] does, whose devices are in `registry`.
    pub fn spawn_registered<D: BackDriver>(
        client: Client,
        registry: Registry,
        make: impl FnOnce() -> D + Send + 'static,
    ) -> DriverThread {
        let stop = Arc::new(EventFd::from_flags(EfdFlags::EFD_CLOEXEC).unwrap());
        let stop_fd = stop.clone();
        let thread = std::thread::spawn(move || {
            let mut driver = make();
            xenbus::driver::run_registered(client, DomId::DOM0, &mut driver, &registry, stop_fd.as_fd())
                .unwrap();
        });
        DriverThread { stop, thread: Some(thread) }
    }

    /// Stops the driver and closes all its devices.
    pub fn stop(self) {}
}

impl Drop for DriverThread {
    fn drop(&mut self) {
        self.stop.write(1).unwrap();
        let result = self.thread.take().unwrap().join();
        assert!(result.is_ok() || std::thread::panicking(), "the backend panicked");
    }
}
