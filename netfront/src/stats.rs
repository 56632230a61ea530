//! An interface's counters over all its connections: written by the thread that uses it, read by any other.

use std::sync::Arc;

use event_loop::{Counter, EventCounters};
use xenbus::stats::{self, Count, Notifications, Operation, Snapshot};

use crate::rx;

/// Why a frame was dropped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DropReason {
    /// Received: the backend could not fill its buffers.
    Status,
    /// Received: bytes beyond a page's end, or a frame too long or too short for Ethernet.
    Size,
    /// Received: more slots than a frame may have.
    Slots,
    /// Received: offload metadata that was not negotiated.
    Extra,
    /// Received: the backend has transferred no page for a slot.
    NoPage,
    /// Received: longer than the caller's buffer. To be sent: longer than the backend takes.
    TooLong,
    /// To be sent while no backend was connected.
    Down,
}

impl DropReason {
    /// Every reason, in the order of their counters.
    pub const ALL: [DropReason; 7] = [
        DropReason::Status,
        DropReason::Size,
        DropReason::Slots,
        DropReason::Extra,
        DropReason::NoPage,
        DropReason::TooLong,
        DropReason::Down,
    ];

    /// Its name in reports.
    pub fn name(self) -> &'static str {
        match self {
            DropReason::Status => "status",
            DropReason::Size => "size",
            DropReason::Slots => "slots",
            DropReason::Extra => "extra",
            DropReason::NoPage => "no_page",
            DropReason::TooLong => "too_long",
            DropReason::Down => "down",
        }
    }
}

impl From<rx::DropReason> for DropReason {
    fn from(reason: rx::DropReason) -> DropReason {
        match reason {
            rx::DropReason::Status => DropReason::Status,
            rx::DropReason::Size => DropReason::Size,
            rx::DropReason::Slots => DropReason::Slots,
            rx::DropReason::Extra => DropReason::Extra,
        }
    }
}

/// Live counters of an interface.
#[derive(Debug, Default)]
pub struct Stats {
    tx_frames: Counter,
    tx_bytes: Counter,
    tx_errors: Counter,
    rx_frames: Counter,
    rx_bytes: Counter,
    drops: [Counter; DropReason::ALL.len()],
    /// Events of both rings.
    pub(crate) events: Arc<EventCounters>,
}

/// The values of an interface's counters.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    /// Frames put on the transmit ring.
    pub tx_frames: u64,
    /// Bytes of `tx_frames`.
    pub tx_bytes: u64,
    /// Frames with a response other than `NETIF_RSP_OKAY`.
    pub tx_errors: u64,
    /// Frames received.
    pub rx_frames: u64,
    /// Bytes of `rx_frames`.
    pub rx_bytes: u64,
    drops: [u64; DropReason::ALL.len()],
}

impl Counters {
    /// Frames dropped for one reason.
    pub fn dropped(&self, reason: DropReason) -> u64 {
        self.drops[reason as usize]
    }

    /// Frames dropped for any reason.
    pub fn all_dropped(&self) -> u64 {
        self.drops.iter().sum()
    }
}

impl Stats {
    /// Reads the counters, each by itself: they are not of one instant.
    pub fn read(&self) -> Counters {
        Counters {
            tx_frames: self.tx_frames.get(),
            tx_bytes: self.tx_bytes.get(),
            tx_errors: self.tx_errors.get(),
            rx_frames: self.rx_frames.get(),
            rx_bytes: self.rx_bytes.get(),
            drops: self.drops.each_ref().map(Counter::get),
        }
    }

    #[inline]
    pub(crate) fn sent(&self, bytes: usize) {
        self.tx_frames.add(1);
        self.tx_bytes.add(bytes as u64);
    }

    #[inline]
    pub(crate) fn received(&self, bytes: usize) {
        self.rx_frames.add(1);
        self.rx_bytes.add(bytes as u64);
    }

    pub(crate) fn send_failed(&self) {
        self.tx_errors.add(1);
    }

    pub(crate) fn dropped(&self, reason: impl Into<DropReason>) {
        self.drops[reason.into() as usize].add(1);
    }
}

impl stats::Stats for Stats {
    fn snapshot(&self) -> Snapshot {
        let counters = self.read();
        let transmit = Operation {
            name: "transmit",
            requests: counters.tx_frames,
            bytes: counters.tx_bytes,
            errors: vec![Count { name: "status", count: counters.tx_errors }],
            latency: None,
        };
        let receive = Operation {
            name: "receive",
            requests: counters.rx_frames,
            bytes: counters.rx_bytes,
            ..Operation::default()
        };
        let drops =
            DropReason::ALL.map(|reason| Count { name: reason.name(), count: counters.dropped(reason) });
        Snapshot {
            operations: vec![transmit, receive],
            notifications: Notifications::from(&*self.events),
            drops: drops.into(),
            ..Snapshot::default()
        }
    }
}
