// Not a core: does I/O or calls a hypervisor.

//! The thread of one ring, which passes requests to the engine and publishes the responses.
//!
//! The thread owns ring, channel and engine, and drops them last: nothing is unmapped while it runs (XSA-374). After
//! the last request it polls for a short while, then sets the ring's event index and sleeps on channel, engine and
//! commands.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use event_channel::{WaitChannel, WaitEventChannels};
use grant_table::{Access, Contiguous, GrantTable};
use inflight::InflightLog;
use inflight::InflightRegion;
use nix::sys::eventfd::{EfdFlags, EventFd};
use ring_abi::blkif::{X86_32, X86_64};
use ring_abi::ring::{BadMemory, Fault, Protocol, slots};
use ring_abi::{DomId, PAGE_SIZE};

use crate::engine::Disk;
use crate::handshake::{Abi, Negotiated};
use crate::queue::ResumeError;
use crate::service::Service;
use crate::stats::Stats;

/// How the data in a guest's pages is accessed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum DataPath {
    /// Pages are mapped for each request, and read and written in place; copied if the kernel cannot pin mapped
    /// pages, which the first request shows.
    #[default]
    Map,
    /// Pages of a frontend with persistent grants (`feature-persistent`) stay mapped, and are copied to and from
    /// memory registered with the kernel while some is free. Other frontends: as [`DataPath::Map`].
    Persistent,
    /// Data is copied by the hypervisor to and from memory of the backend (GNTTABOP_copy).
    Copy,
}

/// Parameters of a ring's thread.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Tuning {
    /// How long the thread polls after the last request before it sleeps.
    pub busy_poll: Duration,
    /// How the data in the guest's pages is accessed.
    pub data_path: DataPath,
    /// The most requests taken before they are submitted and the engine is polled: few enough that the frontend
    /// works on the first responses while the backend works on the next requests, many enough to share the cost of
    /// system calls.
    pub batch: usize,
}

impl Default for Tuning {
    fn default() -> Tuning {
        Tuning { busy_poll: Duration::from_micros(20), data_path: DataPath::default(), batch: 8 }
    }
}

/// Whether requests in flight survive this process.
#[derive(Debug, Default)]
pub enum Recovery {
    /// They are lost: the frontend must connect again and send them again.
    #[default]
    None,
    /// They are recorded in this memory.
    Record(InflightRegion),
    /// They are first resumed from this memory, where an earlier process recorded them, and then recorded.
    Resume(InflightRegion),
}

/// Bytes of memory for [`Recovery`] of this ring.
pub fn inflight_bytes(negotiated: &Negotiated) -> usize {
    fn bytes<P: Protocol>(pages: usize) -> usize {
        InflightLog::<P, InflightRegion>::bytes(slots(P::SLOT, pages * PAGE_SIZE))
    }
    match negotiated.abi {
        Abi::X86_64 => bytes::<X86_64>(negotiated.refs.len()),
        Abi::X86_32 => bytes::<X86_32>(negotiated.refs.len()),
    }
}

/// What a ring's thread needs.
pub struct RingConfig {
    /// This domain's grant table.
    pub grants: Arc<dyn GrantTable>,
    /// This domain's event channels.
    pub channels: Arc<dyn WaitEventChannels>,
    /// The frontend's domain.
    pub peer: DomId,
    /// The frontend's ring.
    pub negotiated: Negotiated,
    /// The disk to serve.
    pub disk: Arc<dyn Disk>,
    /// Whether requests in flight are recorded for a successor of this process.
    pub recovery: Recovery,
    /// The device's counters.
    pub stats: Arc<Stats>,
    /// The thread's parameters.
    pub tuning: Tuning,
    /// Called by the thread when the disk's size changed.
    pub on_resize: Box<dyn Fn() + Send>,
    /// Called by the thread just before it exits, when all else is dropped.
    pub on_exit: Box<dyn FnOnce() + Send>,
}

/// Why a ring's thread could not be started.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The ring's pages cannot be mapped.
    #[error("mapping the ring: {0}")]
    Ring(grant_table::Error),
    /// The event channel cannot be bound.
    #[error("binding the event channel: {0}")]
    Channel(event_channel::Error),
    /// A thread or descriptor cannot be made.
    #[error("starting the ring's thread: {0}")]
    System(#[from] io::Error),
}

/// Why a ring's thread exited without being told to stop.
#[derive(Debug, thiserror::Error)]
pub enum ExitReason {
    /// The frontend broke the protocol.
    #[error(transparent)]
    Fault(#[from] Fault),
    /// The frontend's memory cannot be a ring.
    #[error(transparent)]
    Memory(#[from] BadMemory),
    /// The ring cannot be resumed.
    #[error(transparent)]
    ResumeError(#[from] ResumeError),
    /// The frontend's end of the event channel is closed.
    #[error("the frontend is gone")]
    PeerGone,
    /// An operation on the event channel failed.
    #[error("event channel: {0}")]
    Channel(event_channel::Error),
    /// The engine itself failed, not only one operation.
    #[error("disk engine: {0}")]
    Engine(io::Error),
    /// poll failed.
    #[error("waiting: {0}")]
    Wait(io::Error),
    /// The thread panicked.
    #[error("the ring's thread panicked")]
    Panic,
}

impl ExitReason {
    /// The errno that is reported to toolstacks.
    pub fn errno(&self) -> i32 {
        match self {
            ExitReason::Fault(_) | ExitReason::Memory(_) | ExitReason::ResumeError(_) => libc::EPROTO,
            ExitReason::PeerGone => libc::EPIPE,
            ExitReason::Engine(e) | ExitReason::Wait(e) => e.raw_os_error().unwrap_or(libc::EIO),
            ExitReason::Channel(_) | ExitReason::Panic => libc::EIO,
        }
    }
}

const STOP: u32 = 1;
const RESIZED: u32 = 2;

/// Commands of the control thread to a ring's thread, with the eventfd that wakes it.
#[derive(Debug)]
pub(crate) struct Commands {
    flags: AtomicU32,
    pub(crate) event: EventFd,
}

impl Commands {
    fn new() -> io::Result<Commands> {
        let event = EventFd::from_flags(EfdFlags::EFD_NONBLOCK | EfdFlags::EFD_CLOEXEC)?;
        Ok(Commands { flags: AtomicU32::new(0), event })
    }

    fn send(&self, flag: u32) {
        self.flags.fetch_or(flag, Ordering::Release);
        // Fails only when the counter is full, and then the thread is awake anyway.
        let _ = self.event.write(1);
    }

    #[inline]
    pub(crate) fn pending(&self) -> bool {
        self.flags.load(Ordering::Relaxed) != 0
    }

    pub(crate) fn is_stopped(&self) -> bool {
        self.flags.load(Ordering::Acquire) & STOP != 0
    }

    /// Whether the disk's size is to be read again; `true` once for each command.
    pub(crate) fn take_resized(&self) -> bool {
        let _ = self.event.read();
        self.flags.fetch_and(!RESIZED, Ordering::AcqRel) & RESIZED != 0
    }
}

/// A ring's running thread.
#[derive(Debug)]
pub struct RingThread {
    negotiated: Negotiated,
    commands: Arc<Commands>,
    exited: Arc<AtomicBool>,
    thread: JoinHandle<Result<(), ExitReason>>,
}

impl RingThread {
    /// Maps the ring, binds its channel and starts its thread, which logs within the caller's `tracing` span.
    ///
    /// # Errors
    /// [`StartError`] says what failed; everything is released again.
    pub fn start(config: RingConfig) -> Result<RingThread, StartError> {
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
        Ok(RingThread { negotiated, commands, exited, thread })
    }

    /// The ring that the thread serves.
    pub fn negotiated(&self) -> &Negotiated {
        &self.negotiated
    }

    /// Tells the thread to complete the requests in flight and exit; does not wait for it.
    pub fn stop(&self) {
        self.commands.send(STOP);
    }

    /// Tells the thread to read the disk's size again.
    pub fn resized(&self) {
        self.commands.send(RESIZED);
    }

    /// Whether the thread has exited, and nothing of the ring is in use any more.
    pub fn has_exited(&self) -> bool {
        self.exited.load(Ordering::Acquire)
    }

    /// Waits for the thread to exit.
    ///
    /// # Errors
    /// [`ExitReason`] if the thread exited without being told to, or failed while stopping.
    pub fn join(self) -> Result<(), ExitReason> {
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
