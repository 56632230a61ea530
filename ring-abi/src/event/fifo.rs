//! The FIFO scheme: a word for each port, linked into queues by priority (event_channel.h:338).

use super::EventPort;

/// Ports there are: `EVTCHN_FIFO_NR_CHANNELS`.
pub const CHANNELS: usize = 1 << LINK_BITS;
/// `EVTCHN_FIFO_LINK_BITS`.
pub const LINK_BITS: u32 = 17;
/// `EVTCHN_FIFO_LINK_MASK`.
pub const LINK_MASK: u32 = (1 << LINK_BITS) - 1;
/// The first to be served: `EVTCHN_FIFO_PRIORITY_MAX`.
pub const PRIORITY_MAX: u32 = 0;
/// `EVTCHN_FIFO_PRIORITY_DEFAULT`.
pub const PRIORITY_DEFAULT: u32 = 7;
/// The last to be served: `EVTCHN_FIFO_PRIORITY_MIN`.
pub const PRIORITY_MIN: u32 = 15;
/// `EVTCHN_FIFO_MAX_QUEUES`.
pub const QUEUES: usize = PRIORITY_MIN as usize + 1;

/// `event_word_t`: a port's state and the next port of its queue.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
#[repr(transparent)]
pub struct EventWord(pub u32);

impl EventWord {
    /// An event waits: `EVTCHN_FIFO_PENDING`.
    pub const PENDING: u32 = 1 << 31;
    /// No upcalls: `EVTCHN_FIFO_MASKED`.
    pub const MASKED: u32 = 1 << 30;
    /// In a queue: `EVTCHN_FIFO_LINKED`.
    pub const LINKED: u32 = 1 << 29;
    /// Being changed by Xen: `EVTCHN_FIFO_BUSY`.
    pub const BUSY: u32 = 1 << 28;

    /// The next port of the queue; port 0 ends it.
    pub const fn link(self) -> EventPort {
        EventPort(self.0 & LINK_MASK)
    }

    /// An event waits.
    pub const fn is_pending(self) -> bool {
        self.0 & Self::PENDING != 0
    }

    /// No upcalls.
    pub const fn is_masked(self) -> bool {
        self.0 & Self::MASKED != 0
    }

    /// In a queue.
    pub const fn is_linked(self) -> bool {
        self.0 & Self::LINKED != 0
    }
}

/// `struct evtchn_fifo_control_block` (event_channel.h:363), 72 bytes, one for each virtual processor.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
#[repr(C)]
pub struct ControlBlock {
    /// A bit for each queue that is not empty.
    pub ready: u32,
    /// Not used.
    pub reserved: u32,
    /// First port of each queue.
    pub head: [EventPort; QUEUES],
}

const _: () = assert!(size_of::<ControlBlock>() == 72 && CHANNELS == 131_072);
