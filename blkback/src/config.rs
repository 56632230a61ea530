// Not a core: does I/O or calls a hypervisor.

//! What a ring's thread is given: the frontend's layout, the disk and the thread's parameters.

use std::sync::Arc;
use std::time::Duration;

use grant_table::{GrantTable, PageBudget};
use inflight::InflightLog;
use inflight::InflightRegion;
use ring_abi::blkif::{X86_32, X86_64};
use ring_abi::ring::{Protocol, slots};
use ring_abi::{DomId, PAGE_SIZE};

use crate::disk_watch::DiskWatch;
use crate::engine::{Disk, DiskInfo};
use crate::handshake::Abi;
use crate::medium::Gate;
use crate::stats::Stats;
use crate::throttle::Throttle;

/// How the data in a guest's pages is accessed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum DataPath {
    /// Pages are mapped for each request, and read and written in place; copied if the kernel cannot pin mapped
    /// pages, which the first request shows, or must not have them
    /// ([`maps_for_io`](grant_table::GrantTable::maps_for_io)).
    #[default]
    Map,
    /// Pages of a frontend with persistent grants (`feature-persistent`) stay mapped, as many as the driver's
    /// [`PageBudget`](grant_table::PageBudget) has space for, and are copied to and from memory of the backend, which is registered with
    /// the kernel while some of that is free. The others, and those of other frontends, are copied by the hypervisor.
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

/// Bytes of memory for [`Recovery`] of a ring of so many pages.
pub fn inflight_bytes(abi: Abi, pages: usize) -> usize {
    fn bytes<P: Protocol>(pages: usize) -> usize {
        InflightLog::<P, InflightRegion>::bytes(slots(P::SLOT, pages * PAGE_SIZE))
    }
    match abi {
        Abi::X86_64 => bytes::<X86_64>(pages),
        Abi::X86_32 => bytes::<X86_32>(pages),
    }
}

/// What a ring's thread needs.
pub(crate) struct RingConfig {
    /// This domain's grant table.
    pub(crate) grants: Arc<dyn GrantTable>,
    /// The frontend's domain.
    pub(crate) peer: DomId,
    /// Layout of the ring's slots.
    pub(crate) abi: Abi,
    /// Both ends use persistent grants.
    pub(crate) persistent: bool,
    /// The most segments of an indirect request; 0 where none were offered.
    pub(crate) indirect_segments: u16,
    /// The disk to serve.
    pub(crate) disk: Arc<dyn Disk>,
    /// The disk's properties that the frontend was told.
    pub(crate) info: DiskInfo,
    /// Whether requests in flight are recorded for a successor of this process.
    pub(crate) recovery: Recovery,
    /// The queue's counters.
    pub(crate) stats: Arc<Stats>,
    /// The thread's parameters.
    pub(crate) tuning: Tuning,
    /// The pages that may stay mapped, with other rings'.
    pub(crate) page_budget: PageBudget,
    /// Holds operations back while other rings want a share of the disk's medium.
    pub(crate) gate: Gate,
    /// The disk's properties as the device's threads find them.
    pub(crate) watch: Arc<DiskWatch>,
    /// The disk's limits, if it has any.
    pub(crate) throttle: Option<Arc<Throttle>>,
    /// Called by the thread just before it exits, when all else is dropped.
    pub(crate) on_exit: Box<dyn FnOnce() + Send>,
}
