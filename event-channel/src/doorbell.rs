//! A doorbell: one end of an event channel that rings once a batch and notices who rings for nothing.
//!
//! A peer may send events without end (XSA-332 for back ends, XSA-391 for front ends). Each event costs its receiver
//! a look at the ring. A doorbell counts those looks that found nothing, and says for how long not to listen once
//! there were too many: what the peer did put into the ring meanwhile is found then, so that no work is lost.

use crate::pace::Bucket;
use hypervisor::{Channel, Port, Result};
use ring_abi::ring::Notify;
use std::os::fd::{AsFd, BorrowedFd};
use std::time::Duration;

/// Spurious events a second that are nobody's fault: a peer rings while we are at work already.
pub const SPURIOUS_RATE: u64 = 1_000;
/// Spurious events at once that are nobody's fault.
pub const SPURIOUS_BURST: u64 = 1_000;

/// What happened at a doorbell.
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
pub struct Doorbell {
    channel: Box<dyn Channel>,
    counts: Counts,
    /// An event is to be sent at the end of the batch.
    wanted: bool,
    /// An event was taken and nobody said yet whether there was work.
    open: bool,
    tolerance: Bucket,
}

impl Doorbell {
    /// Over `channel`, at time `now`, with the customary tolerance.
    pub fn new(channel: Box<dyn Channel>, now: Duration) -> Self {
        Self::with_tolerance(channel, Bucket::new(SPURIOUS_RATE, SPURIOUS_BURST, now))
    }

    /// Over `channel`; each spurious event costs a token of `tolerance`.
    pub fn with_tolerance(channel: Box<dyn Channel>, tolerance: Bucket) -> Self {
        Self { channel, counts: Counts::default(), wanted: false, open: false, tolerance }
    }

    /// What the front end writes into `event-channel`.
    pub fn port(&self) -> Port {
        self.channel.port()
    }

    /// What happened so far.
    pub fn counts(&self) -> Counts {
        self.counts
    }

    /// Notes what a ring's commit said; [`Doorbell::flush`] rings once for all of a batch.
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

    /// Rings, whatever was wanted.
    ///
    /// # Errors
    /// As [`Channel::notify`].
    pub fn ring(&mut self) -> Result<()> {
        self.wanted = true;
        self.flush().map(|_| ())
    }

    /// Takes the pending event; `false` if there was none. [`Doorbell::worked`] is to follow.
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

impl AsFd for Doorbell {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.channel.as_fd()
    }
}

impl std::fmt::Debug for Doorbell {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Doorbell(port {}, {:?})", self.port(), self.counts)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use hypervisor::local::{Domain, Sandbox};
    use hypervisor::{DomId, Error, Hypervisor};
    use std::sync::Arc;

    struct World {
        bell: Doorbell,
        peer: Box<dyn Channel>,
        _keep: (Sandbox, Arc<Domain>, Arc<Domain>),
    }

    fn world(tolerance: Bucket) -> World {
        let sandbox = Sandbox::new().unwrap();
        let (dom0, guest) = (sandbox.join(DomId(0)).unwrap(), sandbox.join(DomId(1)).unwrap());
        let peer = guest.listen(DomId(0)).unwrap();
        let channel = dom0.connect(DomId(1), peer.port()).unwrap();
        assert!(channel.take().unwrap());
        World { bell: Doorbell::with_tolerance(channel, tolerance), peer, _keep: (sandbox, dom0, guest) }
    }

    const NOW: Duration = Duration::from_secs(5);

    #[test]
    fn a_batch_rings_once() {
        let mut world = world(Bucket::new(1, 1, NOW));
        assert!(!world.bell.flush().unwrap());
        for notify in [Notify::No, Notify::Yes, Notify::Yes, Notify::No] {
            world.bell.want(notify);
        }
        assert!(world.bell.flush().unwrap());
        assert!(!world.bell.flush().unwrap());
        assert!(world.peer.take().unwrap());
        assert_eq!(world.bell.counts(), Counts { sent: 1, merged: 1, ..Counts::default() });
    }

    #[test]
    fn a_storm_is_slowed_and_honest_events_are_not() {
        let mut world = world(Bucket::new(10, 3, NOW));
        let mut event = |any: bool, now: Duration| {
            world.peer.notify().unwrap();
            assert!(world.bell.take().unwrap());
            world.bell.worked(any, now)
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
        assert_eq!(world.bell.counts().spurious, 5);
        assert_eq!(world.bell.worked(false, NOW), None, "a look that no event led to is nobody's fault");
    }

    #[test]
    fn the_end_of_the_peer_is_an_error() {
        let mut world = world(Bucket::new(1, 1, NOW));
        drop(world.peer);
        assert!(matches!(world.bell.take(), Err(Error::Closed)));
        assert!(matches!(world.bell.ring(), Err(Error::Closed)));
    }
}
