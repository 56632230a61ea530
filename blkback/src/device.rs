//! The shell of one ring: a thread that moves requests to the engine and answers back.
//!
//! The thread owns ring, channel and engine, and drops them last: nothing is unmapped under it (XSA-374). It
//! polls for a short while after the last work and then sleeps, armed, on channel, engine and control.

use std::io;
use std::os::fd::AsFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use hypervisor::{Access, Channel, Contiguous, DomId, Hypervisor, InflightRegion, PAGE_SIZE};
use nix::sys::eventfd::{EfdFlags, EventFd};
use ring_abi::blkif::{X86_32, X86_64};
use ring_abi::ring::inflight_log::InflightLog;
use ring_abi::ring::{BadMemory, Fault, Protocol, slots};

use crate::engine::Disk;
use crate::handshake::{Abi, Transport};
use crate::queue::ResumeError;
use crate::service::Service;
use crate::stats::Stats;

/// How a guest's pages are reached.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum DataPath {
    /// Mapped for each request, and read and written in place; copied where the kernel's I/O cannot do that, which
    /// the first request shows.
    #[default]
    Map,
    /// As [`DataPath::Map`], but those of a frontend that uses the same pages again and again stay mapped
    /// (`feature-persistent`); copied from there to memory that the kernel knows for good, while that has room.
    Persistent,
    /// Copied by the hypervisor to and from pages of our own.
    Copy,
}

/// How the thread behaves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Tuning {
    /// How long the thread polls after the last work before it sleeps.
    pub spin: Duration,
    /// How it reaches the guest's pages.
    pub data_path: DataPath,
    /// Requests taken, at most, before they are submitted and answers looked for: few enough that the frontend
    /// works on the first answers while we work on the next requests, many enough that what a round costs is shared
    /// by many.
    pub batch: usize,
}

impl Default for Tuning {
    fn default() -> Tuning {
        Tuning { spin: Duration::from_micros(20), data_path: DataPath::default(), batch: 8 }
    }
}

/// What becomes of requests in flight when this process is killed.
#[derive(Debug, Default)]
pub enum Recovery {
    /// Nobody knows of them: the frontend has to ask again.
    #[default]
    None,
    /// They are kept in this memory.
    Record(InflightRegion),
    /// This memory has what an earlier process has left in flight on this ring; and then as before.
    Resume(InflightRegion),
}

/// Bytes of memory for [`Recovery`].
pub fn inflight_bytes(transport: &Transport) -> usize {
    fn bytes<P: Protocol>(pages: usize) -> usize {
        InflightLog::<P, InflightRegion>::bytes(slots(P::SLOT, pages * PAGE_SIZE))
    }
    match transport.abi {
        Abi::X86_64 => bytes::<X86_64>(transport.refs.len()),
        Abi::X86_32 => bytes::<X86_32>(transport.refs.len()),
    }
}

/// What a ring is served with.
pub struct Setup {
    /// This domain's hypervisor.
    pub hv: Arc<dyn Hypervisor>,
    /// The frontend's domain.
    pub peer: DomId,
    /// Where the ring is.
    pub transport: Transport,
    /// What it serves.
    pub disk: Arc<dyn Disk>,
    /// Where what is in flight is kept for a successor.
    pub recovery: Recovery,
    /// Where it counts.
    pub stats: Arc<Stats>,
    /// How it behaves.
    pub tuning: Tuning,
    /// Called by the thread when the disk has another size.
    pub changed: Box<dyn Fn() + Send>,
    /// Called by the thread as its very last act.
    pub ended: Box<dyn FnOnce() + Send>,
}

/// Why a ring could not be served.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The ring's pages.
    #[error("mapping the ring: {0}")]
    Ring(hypervisor::Error),
    /// The event channel.
    #[error("connecting the event channel: {0}")]
    Channel(hypervisor::Error),
    /// The system refused a thread or a descriptor.
    #[error("starting the ring's thread: {0}")]
    System(#[from] io::Error),
}

/// Why a ring's service ended by itself.
#[derive(Debug, thiserror::Error)]
pub enum End {
    /// The peer broke the protocol.
    #[error(transparent)]
    Fault(#[from] Fault),
    /// What the peer called a ring is none.
    #[error(transparent)]
    Memory(#[from] BadMemory),
    /// The ring is not as an earlier process left it.
    #[error(transparent)]
    ResumeError(#[from] ResumeError),
    /// The peer's end of the event channel is gone.
    #[error("the frontend is gone")]
    Gone,
    /// The hypervisor refused what it did before.
    #[error("event channel: {0}")]
    Channel(hypervisor::Error),
    /// The engine is broken, not just one operation.
    #[error("disk engine: {0}")]
    Engine(io::Error),
    /// The system refused to let us wait.
    #[error("waiting: {0}")]
    Wait(io::Error),
    /// Our own thread panicked.
    #[error("the ring's thread panicked")]
    Panic,
}

impl End {
    /// The errno by which toolstacks are told.
    pub fn errno(&self) -> i32 {
        match self {
            End::Fault(_) | End::Memory(_) | End::ResumeError(_) => libc::EPROTO,
            End::Gone => libc::EPIPE,
            End::Engine(e) | End::Wait(e) => e.raw_os_error().unwrap_or(libc::EIO),
            End::Channel(_) | End::Panic => libc::EIO,
        }
    }
}

const STOP: u32 = 1;
const RESIZED: u32 = 2;

/// What the control thread tells a ring's thread.
#[derive(Debug)]
pub(crate) struct Orders {
    flags: AtomicU32,
    pub(crate) event: EventFd,
}

impl Orders {
    fn give(&self, flag: u32) {
        self.flags.fetch_or(flag, Ordering::Release);
        // Fails only when the counter is full, and then the thread is awake anyway.
        let _ = self.event.write(1);
    }

    #[inline]
    pub(crate) fn pending(&self) -> bool {
        self.flags.load(Ordering::Relaxed) != 0
    }

    pub(crate) fn stop(&self) -> bool {
        self.flags.load(Ordering::Acquire) & STOP != 0
    }

    /// Whether the disk's size is to be read again; once for each time.
    pub(crate) fn take_resized(&self) -> bool {
        let _ = self.event.read();
        self.flags.fetch_and(!RESIZED, Ordering::AcqRel) & RESIZED != 0
    }
}

/// A ring that is served.
#[derive(Debug)]
pub struct RingThread {
    transport: Transport,
    orders: Arc<Orders>,
    over: Arc<AtomicBool>,
    thread: JoinHandle<Result<(), End>>,
}

impl RingThread {
    /// Maps the ring, connects its channel and starts its thread.
    ///
    /// # Errors
    /// [`StartError`]; everything is given back.
    pub fn start(setup: Setup) -> Result<RingThread, StartError> {
        let Setup { hv, peer, transport, .. } = &setup;
        let ring = hv.map_contiguous(*peer, &transport.refs, Access::ReadWrite).map_err(StartError::Ring)?;
        let channel = hv.bind_interdomain(*peer, transport.port).map_err(StartError::Channel)?;
        let event =
            EventFd::from_flags(EfdFlags::EFD_NONBLOCK | EfdFlags::EFD_CLOEXEC).map_err(io::Error::from)?;
        let orders = Arc::new(Orders { flags: AtomicU32::new(0), event });
        let over = Arc::new(AtomicBool::new(false));
        let (theirs, last, transport) = (orders.clone(), over.clone(), transport.clone());
        let thread = std::thread::Builder::new()
            .name(format!("vbd-{peer}"))
            .spawn(move || body(setup, ring, channel, &theirs, last))?;
        Ok(RingThread { transport, orders, over, thread })
    }

    /// The ring it serves.
    pub fn transport(&self) -> &Transport {
        &self.transport
    }

    /// Asks the thread to finish what is in flight and end; does not wait.
    pub fn stop(&self) {
        self.orders.give(STOP);
    }

    /// Asks the thread to look at the disk's size again.
    pub fn resized(&self) {
        self.orders.give(RESIZED);
    }

    /// Whether the thread is over, and with it all use of the ring.
    pub fn is_over(&self) -> bool {
        self.over.load(Ordering::Acquire)
    }

    /// Waits for the thread; says why it ended if it was not told to.
    ///
    /// # Errors
    /// [`End`].
    pub fn join(self) -> Result<(), End> {
        self.thread.join().unwrap_or(Err(End::Panic))
    }
}

/// Says that the thread is over, whatever ended it, after all else is dropped.
struct Last {
    over: Arc<AtomicBool>,
    ended: Option<Box<dyn FnOnce() + Send>>,
}

impl Drop for Last {
    fn drop(&mut self) {
        self.over.store(true, Ordering::Release);
        if let Some(ended) = self.ended.take() {
            ended();
        }
    }
}

fn body(
    mut setup: Setup,
    ring: Contiguous,
    channel: Box<dyn Channel>,
    orders: &Orders,
    over: Arc<AtomicBool>,
) -> Result<(), End> {
    let ended = std::mem::replace(&mut setup.ended, Box::new(|| ()));
    let _last = Last { over, ended: Some(ended) };
    match setup.transport.abi {
        Abi::X86_64 => Service::<X86_64>::new(setup, ring, channel)?.run(orders),
        Abi::X86_32 => Service::<X86_32>::new(setup, ring, channel)?.run(orders),
    }
}

/// The descriptor of a control eventfd.
pub(crate) fn control_fd(orders: &Orders) -> std::os::fd::BorrowedFd<'_> {
    orders.event.as_fd()
}
