//! A notifier: one end of an event channel that notifies once a batch and guards against event storms (XSA-332 for
//! backends, XSA-391 for frontends).

use event_loop::{StormGuard, TokenBucket};
use hypervisor::{Channel, EventPort, Result};
use ring_abi::ring::Notify;
use std::os::fd::{AsFd, BorrowedFd};
use std::time::Duration;

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
/// use event_channel::Notifier;
/// use hypervisor::{DomId, Hypervisor, local::Sandbox};
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
/// # Ok::<(), hypervisor::Error>(())
/// ```
pub struct Notifier {
    channel: Box<dyn Channel>,
    counts: Counts,
    /// An event is to be sent at the end of the batch.
    wanted: bool,
    guard: StormGuard,
}

impl Notifier {
    /// Wraps `channel` at time `now`, with the tolerance of [`StormGuard::new`].
    pub fn new(channel: Box<dyn Channel>, now: Duration) -> Self {
        Self::with_guard(channel, StormGuard::new(now))
    }

    /// Wraps `channel`; each spurious event costs a token of `tolerance`.
    pub fn with_tolerance(channel: Box<dyn Channel>, tolerance: TokenBucket) -> Self {
        Self::with_guard(channel, StormGuard::with_tolerance(tolerance))
    }

    fn with_guard(channel: Box<dyn Channel>, guard: StormGuard) -> Self {
        Self { channel, counts: Counts::default(), wanted: false, guard }
    }

    /// The local port, which a frontend writes into `event-channel`.
    pub fn port(&self) -> EventPort {
        self.channel.port()
    }

    /// The counters so far.
    pub fn counts(&self) -> Counts {
        Counts { spurious: self.guard.spurious(), ..self.counts }
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
        if taken {
            self.counts.taken += 1;
            self.guard.taken();
        }
        Ok(taken)
    }

    /// Records at time `now` whether the rings had any work since the last event was taken. Returns how long to mask
    /// the channel if it exceeded its tolerance; the caller polls the rings when the mask ends, event or not.
    pub fn worked(&mut self, any: bool, now: Duration) -> Option<Duration> {
        self.guard.worked(any, now)
    }
}

impl AsFd for Notifier {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.channel.as_fd()
    }
}

impl std::fmt::Debug for Notifier {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Notifier(port {}, {:?})", self.port(), self.counts())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use hypervisor::local::{Domain, Sandbox};
    use hypervisor::{DomId, Error, Hypervisor};
    use std::sync::Arc;

    struct Setup {
        notifier: Notifier,
        peer: Box<dyn Channel>,
        _sandbox: (Sandbox, Arc<Domain>, Arc<Domain>),
    }

    fn setup(tolerance: TokenBucket) -> Setup {
        let sandbox = Sandbox::new().unwrap();
        let dom0 = sandbox.join(DomId(0)).unwrap();
        let guest = sandbox.join(DomId(1)).unwrap();
        let peer = guest.alloc_unbound(DomId(0)).unwrap();
        let channel = dom0.bind_interdomain(DomId(1), peer.port()).unwrap();
        assert!(channel.take().unwrap());
        Setup {
            notifier: Notifier::with_tolerance(channel, tolerance),
            peer,
            _sandbox: (sandbox, dom0, guest),
        }
    }

    const NOW: Duration = Duration::from_secs(5);

    #[test]
    fn notifier_flushed_after_a_batch_sends_one_event() {
        let mut setup = setup(TokenBucket::new(1, 1, NOW));
        assert!(!setup.notifier.flush().unwrap());
        for notify in [Notify::No, Notify::Yes, Notify::Yes, Notify::No] {
            setup.notifier.want(notify);
        }
        assert!(setup.notifier.flush().unwrap());
        assert!(!setup.notifier.flush().unwrap());
        assert!(setup.peer.take().unwrap());
        assert_eq!(setup.notifier.counts(), Counts { sent: 1, merged: 1, ..Counts::default() });
    }

    #[test]
    fn notifier_masks_spurious_events_beyond_its_tolerance_only() {
        let mut setup = setup(TokenBucket::new(10, 3, NOW));
        let mut event = |any: bool, now: Duration| {
            setup.peer.notify().unwrap();
            assert!(setup.notifier.take().unwrap());
            setup.notifier.worked(any, now)
        };
        for _ in 0..100 {
            assert_eq!(event(true, NOW), None);
        }
        for _ in 0..3 {
            assert_eq!(event(false, NOW), None);
        }
        let pause = event(false, NOW).expect("too many");
        assert_eq!(pause, Duration::from_millis(100));
        assert_eq!(event(false, NOW + pause), None);
        assert_eq!(setup.notifier.counts().spurious, 5);
        assert_eq!(setup.notifier.worked(false, NOW), None, "no event was taken, so none was spurious");
    }

    #[test]
    fn notifier_after_the_peer_closed_returns_closed() {
        let mut setup = setup(TokenBucket::new(1, 1, NOW));
        drop(setup.peer);
        assert!(matches!(setup.notifier.take(), Err(Error::Closed)));
        setup.notifier.want(Notify::Yes);
        assert!(matches!(setup.notifier.flush(), Err(Error::Closed)));
    }
}
