//! Event channels: `event_channel.h`. Ports, operations and states; the two ways by which a domain learns of events
//! are in [`two_level`] and [`fifo`].

pub mod fifo;
pub mod two_level;

use core::fmt;

/// A domain's local event-channel number, `evtchn_port_t` (event_channel.h:90).
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default)]
#[repr(transparent)]
pub struct EventPort(pub u32);

impl fmt::Display for EventPort {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// `EVTCHNOP_*` (event_channel.h:71).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u32)]
#[allow(missing_docs)] // The names are Xen's own; the header describes each.
pub enum Op {
    BindInterdomain = 0,
    BindVirq = 1,
    BindPirq = 2,
    Close = 3,
    Send = 4,
    Status = 5,
    AllocUnbound = 6,
    BindIpi = 7,
    BindVcpu = 8,
    Unmask = 9,
    Reset = 10,
    InitControl = 11,
    ExpandArray = 12,
    SetPriority = 13,
}

/// `EVTCHNSTAT_*` (event_channel.h:235): what a port is bound to.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u32)]
pub enum State {
    /// Not in use.
    Closed = 0,
    /// Waits for another domain to bind.
    Unbound = 1,
    /// Bound to another domain's port.
    Interdomain = 2,
    /// Bound to a physical interrupt.
    Pirq = 3,
    /// Bound to a virtual interrupt.
    Virq = 4,
    /// Bound to an interrupt between virtual processors.
    Ipi = 5,
}
