//! Event channels of a domain: what a hypervisor implements.

use crate::Result;
use alloc::boxed::Box;
use ring_abi::{DomId, EventPort};

/// One end of an interdomain event channel, closed on drop. All calls are thread-safe.
pub trait Channel: Send + Sync {
    /// This end's local port, which a frontend writes into `event-channel`.
    fn port(&self) -> EventPort;

    /// Sends an event to the other end. Events that were not taken yet merge: into one on `local`, into two on Xen,
    /// where an event sent after the first was delivered becomes pending when that one is taken.
    ///
    /// # Errors
    /// [`Error::Closed`](crate::Error::Closed) where the other end is closed (never on Xen).
    fn notify(&self) -> Result<()>;

    /// Takes the pending event; `false` if none was pending. Never blocks.
    ///
    /// # Errors
    /// [`Error::Closed`](crate::Error::Closed) once the other end is closed and nothing is pending (never on Xen).
    fn take(&self) -> Result<bool>;

    /// Stops delivery to this end, against a peer that sends events without end. Until [`Channel::unmask`] at most one
    /// more event makes a descriptor readable; [`Channel::take`] then takes and remembers it, and returns `false`.
    fn mask(&self);

    /// Allows delivery again. Returns `true` if an event was remembered, for which the caller polls its ring; an
    /// implementation may instead deliver that event anew, and return `false`.
    ///
    /// # Errors
    /// [`Error::Hypervisor`](crate::Error::Hypervisor) where a system call failed.
    fn unmask(&self) -> Result<bool>;
}

/// A hypervisor's event channels, seen from one domain. All calls are thread-safe.
pub trait EventChannels: Send + Sync {
    /// One end of a channel.
    type Channel: Channel;

    /// Allocates an event channel to which `peer` may bind: `EVTCHNOP_alloc_unbound`.
    ///
    /// # Errors
    /// [`Error::NoSpace`](crate::Error::NoSpace) without a free port;
    /// [`Error::NoSuchDomain`](crate::Error::NoSuchDomain) on `local`.
    fn alloc_unbound(&self, peer: DomId) -> Result<Self::Channel>;

    /// Binds to `port`, which `peer` allocated for this domain: `EVTCHNOP_bind_interdomain`. The new end starts
    /// pending.
    ///
    /// # Errors
    /// [`Error::NoSuchPort`](crate::Error::NoSuchPort) where `peer` has no such unbound port for this domain.
    fn bind_interdomain(&self, peer: DomId, port: EventPort) -> Result<Self::Channel>;
}

impl<C: Channel + ?Sized> Channel for Box<C> {
    #[inline]
    fn port(&self) -> EventPort {
        (**self).port()
    }

    #[inline]
    fn notify(&self) -> Result<()> {
        (**self).notify()
    }

    #[inline]
    fn take(&self) -> Result<bool> {
        (**self).take()
    }

    fn mask(&self) {
        (**self).mask();
    }

    fn unmask(&self) -> Result<bool> {
        (**self).unmask()
    }
}
