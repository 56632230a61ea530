// Not a core: does I/O or calls a hypervisor.

//! The thread of one ring, which passes requests to the engine and publishes the responses.
//!
//! The thread owns ring, channel and engine, and drops them last: nothing is unmapped while it runs (XSA-374). Whatever
//! of them cannot be made is an error of starting it, before the frontend is told that it is connected. After
//! the last request it polls for a short while, then sets the ring's event index and sleeps on channel, engine and
//! commands.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{self, Receiver, SyncSender};
use std::thread::JoinHandle;

use event_channel::{WaitChannel, WaitEventChannels};
use grant_table::{Access, Contiguous, GrantTable};
use ring_abi::DomId;
use ring_abi::blkif::{Request, Response, X86_32, X86_64};
use ring_abi::ring::Protocol;

use crate::commands::Commands;
use crate::config::RingConfig;
use crate::engine::DiskInfo;
use crate::error::{ExitReason, StartError};
use crate::handshake::{Abi, QueueInfo};
use crate::service::Service;
use crate::throttle::Throttle;

/// A ring that is mapped, and the event channel that is bound to it.
pub(crate) struct Attached {
    ring: Contiguous,
    channel: Box<dyn WaitChannel>,
}

impl Attached {
    /// Maps the rings of these queues and binds their channels. No channel is bound before all rings are mapped: one that is
    /// bound in vain is closed for its frontend, which could not be served when it has corrected the rings' keys.
    ///
    /// # Errors
    /// [`StartError::Ring`], [`StartError::Channel`].
    pub(crate) fn all(
        grants: &dyn GrantTable,
        channels: &dyn WaitEventChannels,
        peer: DomId,
        queues: &[QueueInfo],
    ) -> Result<Vec<Attached>, StartError> {
        let map = |queue: &QueueInfo| grants.map_contiguous(peer, &queue.refs, Access::ReadWrite);
        let rings = queues.iter().map(map).collect::<Result<Vec<_>, _>>().map_err(StartError::Ring)?;
        let bind = |(ring, queue): (Contiguous, &QueueInfo)| {
            let channel = channels.bind_interdomain(peer, queue.port).map_err(StartError::Channel)?;
            Ok(Attached { ring, channel })
        };
        rings.into_iter().zip(queues).map(bind).collect()
    }
}

/// The thread of a ring, which runs until it is told to stop or the frontend goes. Dropping it tells it to stop, and waits for
/// nothing.
#[derive(Debug)]
pub(crate) struct RingThread {
    commands: Arc<Commands>,
    exited: Arc<AtomicBool>,
    /// What the thread waits for before it serves its first request.
    go: SyncSender<()>,
    thread: JoinHandle<Result<(), ExitReason>>,
}

impl RingThread {
    /// Starts the thread, which logs within the caller's `tracing` span. Waits until it has made the disk's engine, and can
    /// serve requests; it takes none before [`RingThread::serve`].
    ///
    /// # Errors
    /// [`StartError`] says what failed; everything is released again.
    pub(crate) fn start(config: RingConfig, attached: Attached) -> Result<RingThread, StartError> {
        let commands = Arc::new(Commands::new(config.info)?);
        let exited = Arc::new(AtomicBool::new(false));
        let thread_commands = commands.clone();
        let thread_exited = exited.clone();
        let span = tracing::Span::current();
        let (report, started) = mpsc::sync_channel(1);
        let (go, going) = mpsc::sync_channel(1);
        let name = format!("vbd-{}", config.peer);
        let thread = std::thread::Builder::new().name(name).spawn(move || {
            let _span = span.entered();
            run(config, attached, &thread_commands, thread_exited, &Start { report, going })
        })?;
        match started.recv().unwrap_or(Err(StartError::Panic)) {
            Ok(()) => Ok(RingThread { commands, exited, go, thread }),
            Err(error) => {
                // It is about to exit, and has released everything then.
                let _ = thread.join();
                Err(error)
            }
        }
    }

    /// Has the thread serve requests.
    pub(crate) fn serve(&self) {
        // Full only if it was called before; the thread waits for it, or has panicked.
        let _ = self.go.try_send(());
    }

    /// Tells a thread that serves nothing yet to release everything, and waits for that.
    pub(crate) fn abandon(self) {
        drop(self.go);
        let _ = self.thread.join();
    }

    /// Tells the thread to complete the requests in flight and exit; does not wait for it.
    pub(crate) fn stop(&self) {
        self.commands.stop();
    }

    /// Tells the thread to read the disk's size again.
    pub(crate) fn look(&self) {
        self.commands.look();
    }

    /// Tells the thread that these properties of the disk are advertised.
    pub(crate) fn advertised(&self, info: DiskInfo) {
        self.commands.advertised(info);
    }

    /// Tells the thread that these limits of the disk hold from now on.
    pub(crate) fn set_throttle(&self, throttle: Option<Arc<Throttle>>) {
        self.commands.set_throttle(throttle);
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

/// What the thread and whoever starts it tell each other.
struct Start {
    report: SyncSender<Result<(), StartError>>,
    going: Receiver<()>,
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
    Attached { ring, channel }: Attached,
    commands: &Commands,
    exited: Arc<AtomicBool>,
    start: &Start,
) -> Result<(), ExitReason> {
    let on_exit = std::mem::replace(&mut config.on_exit, Box::new(|| ()));
    let _guard = ExitGuard { exited, on_exit: Some(on_exit) };
    match config.abi {
        Abi::X86_64 => serve(Service::<X86_64>::new(config, ring, channel), commands, start),
        Abi::X86_32 => serve(Service::<X86_32>::new(config, ring, channel), commands, start),
    }
}

/// Reports whether the service could be made, and runs it once it is to serve.
fn serve<P: Protocol<Request = Request, Response = Response>>(
    service: Result<Service<P>, StartError>,
    commands: &Commands,
    start: &Start,
) -> Result<(), ExitReason> {
    let (outcome, service) = match service {
        Ok(service) => (Ok(()), Some(service)),
        Err(error) => (Err(error), None),
    };
    // Whoever starts the thread waits for the report.
    let _ = start.report.send(outcome);
    match service {
        Some(service) if start.going.recv().is_ok() => service.run(commands),
        _ => Ok(()),
    }
}
