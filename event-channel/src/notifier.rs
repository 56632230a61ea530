//! A notifier: one end of an event channel that rings once a batch and notices who rings for nothing.
//!
//! A peer may send events without end (XSA-332 for backends, XSA-391 for frontends). Each event costs its receiver
//! a look at the ring. A notifier counts those looks that found nothing, and says for how long not to listen once
//! there were too many: what the peer did put into the ring meanwhile is found then, so that no work is lost.

use event_loop::TokenBucket;
use hypervisor::{Channel, EventPort, Result};
use ring_abi::ring::Notify;
use std::os::fd::{AsFd, BorrowedFd};
use std::time::Duration;

/// Spurious events a second that are nobody's fault: a peer rings while we are at work already.
pub const SPURIOUS_RATE: u64 = 1_000;
/// Spurious events at once that are nobody's fault.
pub const SPURIOUS_BURST: u64 = 1_000;

/// What happened at a notifier.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Counts {
    /// Events that we sent.
    pub sent: u64,
    /// Times that we wanted to send one and did not need to, since one was about to be sent.
    pub merged: u64,
    /// Events that we took; several sent by the peer may be one.
    pub taken: u64,
    /// Of those, how many led to no work.
    pub spurious: u64,
}

/// A channel with its counts. Owned by the thread that serves the ring.
pub struct Notifier {
    channel: Box<dyn Channel>,
    counts: Counts,
    /// An event is to be sent at the end of the batch.
    wanted: bool,
    /// An event was taken and nobody said yet whether there was work.
    open: bool,
    tolerance: TokenBucket,
}

impl Notifier {
    /// Over `channel`, at time `now`, with the customary tolerance.
    pub fn new(channel: Box<dyn Channel>, now: Duration) -> Self {
        Self::with_tolerance(channel, TokenBucket::new(SPURIOUS_RATE, SPURIOUS_BURST, now))
    }

    /// Over `channel`; each spurious event costs a token of `tolerance`.
    pub fn with_tolerance(channel: Box<dyn Channel>, tolerance: TokenBucket) -> Self {
        Self { channel, counts: Counts::default(), wanted: false, open: false, tolerance }
    }

    /// What the frontend writes into `event-channel`.
    pub fn port(&self) -> EventPort {
        self.channel.port()
    }

    /// What happened so far.
    pub fn counts(&self) -> Counts {
        self.counts
    }

    /// Notes what a ring's commit said; [`Notifier::flush`] rings once for all of a batch.
    #[inline]
    pub fn want(&mut self, notify: Notify) {
        if notify.wanted() {
            self.counts.merged += u64::from(self.wanted);
            self.wanted = true;
        }
    }

    /// Rings if anybody wanted it since the last time; says whether it did.
    ///
    /// # Errors
    /// As [`Channel::notify`]; the wish is kept.
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

    /// Takes the pending event; `false` if there was none. [`Notifier::worked`] is to follow.
    ///
    /// # Errors
    /// As [`Channel::take`].
    pub fn take(&mut self) -> Result<bool> {
        let taken = self.channel.take()?;
        self.counts.taken += u64::from(taken);
        self.open |= taken;
        Ok(taken)
    }

    /// Says at time `now` whether the rings had any work since the last event was taken. The answer is for how long
    /// the descriptor should not be listened to; then the rings are to be looked at, event or not.
    pub fn worked(&mut self, any: bool, now: Duration) -> Option<Duration> {
        let spurious = std::mem::take(&mut self.open) && !any;
        if !spurious {
            return None;
        }
        self.counts.spurious += 1;
        if self.tolerance.take(1, now) {
            return None;
        }
        // Where tokens never come, a second is as long as anybody need wait for a look.
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

#[cfg(test)]
mod tests {
    use super::*;
    use hypervisor::local::{Domain, Sandbox};
    use hypervisor::{DomId, Error, Hypervisor};
    use std::sync::Arc;

    struct World {
        notifier: Notifier,
        peer: Box<dyn Channel>,
        _keep: (Sandbox, Arc<Domain>, Arc<Domain>),
    }

    fn world(tolerance: TokenBucket) -> World {
        let sandbox = Sandbox::new().unwrap();
        let (dom0, guest) = (sandbox.join(DomId(0)).unwrap(), sandbox.join(DomId(1)).unwrap());
        let peer = guest.alloc_unbound(DomId(0)).unwrap();
        let channel = dom0.bind_interdomain(DomId(1), peer.port()).unwrap();
        assert!(channel.take().unwrap());
        World { notifier: Notifier::with_tolerance(channel, tolerance), peer, _keep: (sandbox, dom0, guest) }
    }

    const NOW: Duration = Duration::from_secs(5);

    #[test]
    fn a_batch_rings_once() {
        let mut world = world(TokenBucket::new(1, 1, NOW));
        assert!(!world.notifier.flush().unwrap());
        for notify in [Notify::No, Notify::Yes, Notify::Yes, Notify::No] {
            world.notifier.want(notify);
        }
        assert!(world.notifier.flush().unwrap());
        assert!(!world.notifier.flush().unwrap());
        assert!(world.peer.take().unwrap());
        assert_eq!(world.notifier.counts(), Counts { sent: 1, merged: 1, ..Counts::default() });
    }

    #[test]
    fn a_storm_is_slowed_and_honest_events_are_not() {
        let mut world = world(TokenBucket::new(10, 3, NOW));
        let mut event = |any: bool, now: Duration| {
            world.peer.notify().unwrap();
            assert!(world.notifier.take().unwrap());
            world.notifier.worked(any, now)
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
        assert_eq!(world.notifier.counts().spurious, 5);
        assert_eq!(world.notifier.worked(false, NOW), None, "a look that no event led to is nobody's fault");
    }

    #[test]
    fn the_end_of_the_peer_is_an_error() {
        let mut world = world(TokenBucket::new(1, 1, NOW));
        drop(world.peer);
        assert!(matches!(world.notifier.take(), Err(Error::Closed)));
        world.notifier.wanted = true;
        assert!(matches!(world.notifier.flush(), Err(Error::Closed)));
    }
}
