// Not a core: does I/O or calls a hypervisor.

//! The thread of one ring, which passes requests to the engine and publishes the responses.
//!
//! The thread owns ring, channel and engine, and drops them last: nothing is unmapped while it runs (XSA-374). Whatever
//! of them cannot be made is an error of starting it, before the frontend is told that it is connected. After
//! the last request it polls for a short while, then sets the ring's event index and sleeps on channel, engine and
//! commands.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{self, SyncSender};
use std::thread::JoinHandle;

use event_channel::WaitChannel;
use grant_table::{Access, Contiguous};
use ring_abi::blkif::{Request, Response, X86_32, X86_64};
use ring_abi::ring::Protocol;

use crate::commands::Commands;
use crate::config::RingConfig;
use crate::error::{ExitReason, StartError};
use crate::handshake::{Abi, Negotiated};
use crate::service::Service;

/// A connected ring: its thread, which runs until it is told to stop or the frontend goes.
#[derive(Debug)]
pub(crate) struct Connection {
    negotiated: Negotiated,
    commands: Arc<Commands>,
    exited: Arc<AtomicBool>,
    thread: JoinHandle<Result<(), ExitReason>>,
}

impl Connection {
    /// Maps the ring, binds its channel and starts its thread, which logs within the caller's `tracing` span. Waits until
    /// the thread has made the disk's engine, and can serve requests.
    ///
    /// # Errors
    /// [`StartError`] says what failed; everything is released again.
    pub(crate) fn start(config: RingConfig) -> Result<Connection, StartError> {
        let RingConfig { grants, channels, peer, negotiated, .. } = &config;
        let ring =
            grants.map_contiguous(*peer, &negotiated.refs, Access::ReadWrite).map_err(StartError::Ring)?;
        let channel = channels.bind_interdomain(*peer, negotiated.port).map_err(StartError::Channel)?;
        let negotiated = negotiated.clone();
        let commands = Arc::new(Commands::new()?);
        let exited = Arc::new(AtomicBool::new(false));
        let thread_commands = commands.clone();
        let thread_exited = exited.clone();
        let span = tracing::Span::current();
        let (report, started) = mpsc::sync_channel(1);
        let thread = std::thread::Builder::new().name(format!("vbd-{peer}")).spawn(move || {
            let _span = span.entered();
            run(config, ring, channel, &thread_commands, thread_exited, &report)
        })?;
        match started.recv().unwrap_or(Err(StartError::Panic)) {
            Ok(()) => Ok(Connection { negotiated, commands, exited, thread }),
            Err(error) => {
                // It is about to exit, and has released everything then.
                let _ = thread.join();
                Err(error)
            }
        }
    }

    /// The ring that the thread serves.
    pub(crate) fn negotiated(&self) -> &Negotiated {
        &self.negotiated
    }

    /// Tells the thread to complete the requests in flight and exit; does not wait for it.
    pub(crate) fn stop(&self) {
        self.commands.stop();
    }

    /// Tells the thread to read the disk's size again.
    pub(crate) fn look(&self) {
        self.commands.look();
    }

    /// Tells the thread that the size it has read is advertised.
    pub(crate) fn resized(&self) {
        self.commands.resized();
    }

    /// Whether the thread has exited, and nothing of the ring is in use any more.
    pub(crate) fn has_exited(&self) -> bool {
        self.exited.load(Ordering::Acquire)
    }

    /// Waits for the thread to exit.
    ///
    /// # Errors
    /// [`ExitReason`] if the thread exited without being told to, or failed while stopping.
    pub(crate) fn join(self) -> Result<(), ExitReason> {
        self.thread.join().unwrap_or(Err(ExitReason::Panic))
    }
}

/// Reports the thread's exit after all else is dropped, even if it panicked.
struct ExitGuard {
    exited: Arc<AtomicBool>,
    on_exit: Option<Box<dyn FnOnce() + Send>>,
}

impl Drop for ExitGuard {
    fn drop(&mut self) {
        self.exited.store(true, Ordering::Release);
        if let Some(on_exit) = self.on_exit.take() {
            on_exit();
        }
    }
}

fn run(
    mut config: RingConfig,
    ring: Contiguous,
    channel: Box<dyn WaitChannel>,
    commands: &Commands,
    exited: Arc<AtomicBool>,
    report: &SyncSender<Result<(), StartError>>,
) -> Result<(), ExitReason> {
    let on_exit = std::mem::replace(&mut config.on_exit, Box::new(|| ()));
    let _guard = ExitGuard { exited, on_exit: Some(on_exit) };
    match config.negotiated.abi {
        Abi::X86_64 => serve(Service::<X86_64>::new(config, ring, channel), commands, report),
        Abi::X86_32 => serve(Service::<X86_32>::new(config, ring, channel), commands, report),
    }
}

/// Reports whether the service could be made, and runs it.
fn serve<P: Protocol<Request = Request, Response = Response>>(
    service: Result<Service<P>, StartError>,
    commands: &Commands,
    report: &SyncSender<Result<(), StartError>>,
) -> Result<(), ExitReason> {
    let (outcome, service) = match service {
        Ok(service) => (Ok(()), Some(service)),
        Err(error) => (Err(error), None),
    };
    // Whoever starts the thread waits for the report.
    let _ = report.send(outcome);
    service.map_or(Ok(()), |service| service.run(commands))
}
