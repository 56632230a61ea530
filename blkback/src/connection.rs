// Not a core: does I/O or calls a hypervisor.

//! The thread of one ring, which passes requests to the engine and publishes the responses.
//!
//! The thread owns ring, channel and engine, and drops them last: nothing is unmapped while it runs (XSA-374). After
//! the last request it polls for a short while, then sets the ring's event index and sleeps on channel, engine and
//! commands.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;

use event_channel::WaitChannel;
use grant_table::{Access, Contiguous};
use ring_abi::blkif::{X86_32, X86_64};

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
    /// Maps the ring, binds its channel and starts its thread, which logs within the caller's `tracing` span.
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
        let thread = std::thread::Builder::new().name(format!("vbd-{peer}")).spawn(move || {
            let _span = span.entered();
            run(config, ring, channel, &thread_commands, thread_exited)
        })?;
        Ok(Connection { negotiated, commands, exited, thread })
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
    pub(crate) fn resized(&self) {
        self.commands.resize();
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
) -> Result<(), ExitReason> {
    let on_exit = std::mem::replace(&mut config.on_exit, Box::new(|| ()));
    let _guard = ExitGuard { exited, on_exit: Some(on_exit) };
    match config.negotiated.abi {
        Abi::X86_64 => Service::<X86_64>::new(config, ring, channel)?.run(commands),
        Abi::X86_32 => Service::<X86_32>::new(config, ring, channel)?.run(commands),
    }
}
