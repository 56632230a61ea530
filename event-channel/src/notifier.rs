// Not a core: does I/O or calls a hypervisor.

//! A notifier: one end of an event channel that notifies once a batch and detects spurious events.
//!
//! A peer may send events without end (XSA-332 for backends, XSA-391 for frontends), and each makes its receiver poll
//! the ring. A notifier counts the events that led to no work and, once there were too many, returns how long to mask
//! the channel. The ring is polled when the mask ends, so that no request is lost.

use crate::{Channel, Result, WaitChannel};
use event_loop::TokenBucket;
use ring_abi::EventPort;
use ring_abi::ring::Notify;
use std::os::fd::{AsFd, BorrowedFd};
use std::time::Duration;

/// Spurious events a second that are tolerated: an honest peer sends some, as its event can arrive while this side
/// is already serving the ring.
pub const SPURIOUS_RATE: u64 = 1_000;
/// Spurious events in a burst that are tolerated.
pub const SPURIOUS_BURST: u64 = 1_000;

/// Counters of a notifier's events.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Counts {
    /// Events sent.
    pub sent: u64,
    /// Requests to notify that were merged into one that was pending already.
    pub merged: u64,
    /// Events taken; several sent by the peer may merge into one.
    pub taken: u64,
    /// Events taken that led to no work.
    pub spurious: u64,
}

/// A channel with its counters. Owned by the thread that serves the ring.
///
/// ```
/// use event_channel::{EventChannels, Notifier};
/// use hypervisor::local::Sandbox;
/// use ring_abi::DomId;
/// use ring_abi::ring::Notify;
/// use std::time::Duration;
///
/// let sandbox = Sandbox::new()?;
/// let dom0 = sandbox.join(DomId::DOM0)?;
/// let guest = sandbox.join(DomId(1))?;
/// let mut front = Notifier::new(guest.alloc_unbound(DomId::DOM0)?, Duration::ZERO);
/// let mut back = Notifier::new(dom0.bind_interdomain(DomId(1), front.port())?, Duration::ZERO);
/// // Two requests of one batch: one event.
/// front.want(Notify::Yes);
/// front.want(Notify::Yes);
/// assert!(front.flush()?);
/// assert!(back.take()?);
/// assert_eq!(back.worked(true, Duration::ZERO), None);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub struct Notifier {
    channel: Box<dyn WaitChannel>,
    counts: Counts,
    /// An event is to be sent at the end of the batch.
    wanted: bool,
    /// An event was taken and [`Notifier::worked`] was not called since.
    unaccounted: bool,
    tolerance: TokenBucket,
}

impl Notifier {
    /// Wraps `channel` at time `now`, tolerating [`SPURIOUS_RATE`] and [`SPURIOUS_BURST`].
    pub fn new(channel: Box<dyn WaitChannel>, now: Duration) -> Self {
        Self::with_tolerance(channel, TokenBucket::new(SPURIOUS_RATE, SPURIOUS_BURST, now))
    }

    /// Wraps `channel`; each spurious event costs a token of `tolerance`.
    pub fn with_tolerance(channel: Box<dyn WaitChannel>, tolerance: TokenBucket) -> Self {
        Self { channel, counts: Counts::default(), wanted: false, unaccounted: false, tolerance }
    }

    /// The local port, which a frontend writes into `event-channel`.
    pub fn port(&self) -> EventPort {
        self.channel.port()
    }

    /// The counters so far.
    pub fn counts(&self) -> Counts {
        self.counts
    }

    /// Records whether a ring's commit wants an event; [`Notifier::flush`] sends one for the whole batch.
    #[inline]
    pub fn want(&mut self, notify: Notify) {
        if notify.wanted() {
            self.counts.merged += u64::from(self.wanted);
            self.wanted = true;
        }
    }

    /// Sends an event if one was wanted since the last flush; returns whether it did.
    ///
    /// # Errors
    /// As [`Channel::notify`]; the event stays wanted.
    #[inline]
    pub fn flush(&mut self) -> Result<bool> {
        if !self.wanted {
            return Ok(false);
        }
        self.channel.notify()?;
        self.wanted = false;
        self.counts.sent += 1;
        Ok(true)
    }

    /// Takes the pending event; `false` if there was none. The caller then serves the rings and calls
    /// [`Notifier::worked`].
    ///
    /// # Errors
    /// As [`Channel::take`].
    pub fn take(&mut self) -> Result<bool> {
        let taken = self.channel.take()?;
        self.counts.taken += u64::from(taken);
        self.unaccounted |= taken;
        Ok(taken)
    }

    /// Records at time `now` whether the rings had any work since the last event was taken. Returns how long to mask
    /// the channel if it exceeded its tolerance; the caller polls the rings when the mask ends, event or not.
    pub fn worked(&mut self, any: bool, now: Duration) -> Option<Duration> {
        let spurious = std::mem::take(&mut self.unaccounted) && !any;
        if !spurious {
            return None;
        }
        self.counts.spurious += 1;
        if self.tolerance.take(1, now) {
            return None;
        }
        // A bucket of rate 0 never refills; a poll a second is enough for a peer without tolerance.
        Some(self.tolerance.wait(1, now).unwrap_or(Duration::from_secs(1)))
    }
}

impl AsFd for Notifier {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.channel.as_fd()
    }
}

impl std::fmt::Debug for Notifier {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Notifier(port {}, {:?})", self.port(), self.counts)
    }
}
