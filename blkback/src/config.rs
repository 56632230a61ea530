// Not a core: does I/O or calls a hypervisor.

//! What a ring's thread is given: the frontend's ring, the disk and the thread's parameters.

use std::sync::Arc;
use std::time::Duration;

use event_channel::WaitEventChannels;
use grant_table::{GrantTable, PageBudget};
use inflight::InflightLog;
use inflight::InflightRegion;
use ring_abi::blkif::{X86_32, X86_64};
use ring_abi::ring::{Protocol, slots};
use ring_abi::{DomId, PAGE_SIZE};

use crate::engine::{Disk, DiskInfo};
use crate::handshake::{Abi, Negotiated};
use crate::stats::Stats;

/// How the data in a guest's pages is accessed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum DataPath {
    /// Pages are mapped for each request, and read and written in place; copied if the kernel cannot pin mapped
    /// pages, which the first request shows.
    #[default]
    Map,
    /// Pages of a frontend with persistent grants (`feature-persistent`) stay mapped, as many as the driver's
    /// [`PageBudget`](grant_table::PageBudget) has space for, and are copied to and from memory registered with the kernel while some is
    /// free. The others are copied by the hypervisor. Other frontends: as [`DataPath::Map`].
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
    /// The disk's properties that the frontend was told.
    pub info: DiskInfo,
    /// Whether requests in flight are recorded for a successor of this process.
    pub recovery: Recovery,
    /// The device's counters.
    pub stats: Arc<Stats>,
    /// The thread's parameters.
    pub tuning: Tuning,
    /// The pages that may stay mapped, with other rings'.
    pub page_budget: PageBudget,
    /// Called by the thread when the disk's properties have changed, and when it exits, with what they are.
    pub on_info: Box<dyn Fn(DiskInfo) + Send>,
    /// Called by the thread just before it exits, when all else is dropped.
    pub on_exit: Box<dyn FnOnce() + Send>,
}
