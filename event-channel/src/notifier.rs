//! A notifier: one end of an event channel that notifies once a batch and guards against event storms (XSA-332 for
//! backends, XSA-391 for frontends).

use crate::{Channel, Result};
use alloc::sync::Arc;
use core::time::Duration;
use event_loop::{EventCounters, EventCounts, StormGuard};
use ring_abi::EventPort;
use ring_abi::ring::Notify;

/// A channel with its counters and its guard. Owned by the thread that serves the ring.
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
/// let mut front = Notifier::new(guest.alloc_unbound(DomId::DOM0)?);
/// let mut back = Notifier::new(dom0.bind_interdomain(DomId(1), front.port())?);
/// // Two requests of one batch: one event.
/// front.want(Notify::Yes);
/// front.want(Notify::Yes);
/// assert!(front.flush()?);
/// assert!(back.take()?);
/// back.worked(true);
/// assert_eq!(back.pause(Duration::ZERO), None);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub struct Notifier<C> {
    pub(crate) channel: C,
    counters: Arc<EventCounters>,
    /// An event is to be sent at the end of the batch.
    wanted: bool,
    masked: bool,
    guard: StormGuard,
}

impl<C: Channel> Notifier<C> {
    /// Wraps `channel`, with the tolerance of [`StormGuard::default`].
    pub fn new(channel: C) -> Self {
        Self::with_guard(channel, StormGuard::default())
    }

    /// Wraps `channel`, whose spurious events `guard` limits.
    pub fn with_guard(channel: C, guard: StormGuard) -> Self {
        Self { channel, counters: Arc::default(), wanted: false, masked: false, guard }
    }

    /// Counts in `counters` from now on, which other threads may read. Those of a device may be the same over all its
    /// connections.
    pub fn count_in(&mut self, counters: Arc<EventCounters>) {
        self.counters = counters;
    }

    /// The local port, which a frontend writes into `event-channel`.
    pub fn port(&self) -> EventPort {
        self.channel.port()
    }

    /// The counters so far.
    pub fn counts(&self) -> EventCounts {
        self.counters.read()
    }

    /// Events taken that led to no work.
    pub fn spurious(&self) -> u64 {
        self.guard.spurious()
    }

    /// Records whether a commit that published something wants an event; [`Notifier::flush`] sends one for the whole
    /// batch.
    #[inline]
    pub fn want(&mut self, notify: Notify) {
        if self.wanted || !notify.wanted() {
            self.counters.suppressed();
        }
        self.wanted |= notify.wanted();
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
        self.counters.sent();
        Ok(true)
    }

    /// Takes the pending event; `false` if there was none, or the channel is masked. The caller then serves the rings
    /// and calls [`Notifier::worked`].
    ///
    /// # Errors
    /// As [`Channel::take`].
    pub fn take(&mut self) -> Result<bool> {
        let taken = self.channel.take()?;
        self.record(taken);
        Ok(taken)
    }

    fn record(&mut self, taken: bool) {
        if taken {
            self.counters.taken();
            self.guard.taken();
        }
    }

    /// Records whether the rings had any work.
    #[inline]
    pub fn worked(&mut self, any: bool) {
        self.guard.worked(any);
    }

    /// Accounts, at time `now`, for the events taken since the last call, before the caller sleeps. Returns how long to
    /// mask the channel if it exceeded its tolerance; the caller polls the rings when the mask ends, event or not.
    pub fn pause(&mut self, now: Duration) -> Option<Duration> {
        self.guard.pause(now)
    }

    /// Stops the delivery of events.
    pub fn mask(&mut self) {
        self.masked = true;
        self.channel.mask();
    }

    /// Whether the channel is masked.
    pub fn is_masked(&self) -> bool {
        self.masked
    }

    /// Allows the delivery of events again; `true` if one was remembered, which counts as taken.
    ///
    /// # Errors
    /// As [`Channel::unmask`].
    pub fn unmask(&mut self) -> Result<bool> {
        let remembered = self.channel.unmask()?;
        self.masked = false;
        self.record(remembered);
        Ok(remembered)
    }
}

impl<C: Channel> core::fmt::Debug for Notifier<C> {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        write!(f, "Notifier(port {}, {:?})", self.port(), self.counts())
    }
}
