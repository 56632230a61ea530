//! The notifiers of a device with several queues, each of which has an event channel, for a loop that serves them all.
//!
//! They are guarded together: the timer of an [`EventSet`](event_loop::EventSet) ends one mask, that of all.

use crate::{Channel, Notifier, Result};
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::time::Duration;
use event_loop::EventCounters;
use ring_abi::EventPort;
use ring_abi::ring::Notify;

/// Notifiers by the number of their queue.
///
/// ```
/// use event_channel::{Channel, EventChannels, Notifier, Notifiers};
/// use hypervisor::local::Sandbox;
/// use ring_abi::DomId;
/// use ring_abi::ring::Notify;
///
/// let sandbox = Sandbox::new()?;
/// let dom0 = sandbox.join(DomId::DOM0)?;
/// let guest = sandbox.join(DomId(1))?;
/// let alloc = || guest.alloc_unbound(DomId::DOM0).map(Notifier::new);
/// let mut notifiers = Notifiers::new(vec![alloc()?, alloc()?]);
/// let ports: Vec<_> = notifiers.ports().collect();
/// let back = dom0.bind_interdomain(DomId(1), ports[1])?;
/// assert!(back.take()?, "the end that binds starts pending");
/// notifiers.want(1, Notify::Yes);
/// notifiers.flush()?;
/// assert!(back.take()?);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug)]
pub struct Notifiers<C: Channel> {
    pub(crate) all: Vec<Notifier<C>>,
    /// A queue had work since the last [`Notifiers::pause`].
    worked: bool,
}

impl<C: Channel> Default for Notifiers<C> {
    fn default() -> Self {
        Self::new(Vec::new())
    }
}

impl<C: Channel> Notifiers<C> {
    /// One for each queue.
    pub fn new(all: Vec<Notifier<C>>) -> Self {
        Self { all, worked: false }
    }

    /// Counts the events of all in `counters` from now on.
    pub fn count_in(&mut self, counters: &Arc<EventCounters>) {
        self.all.iter_mut().for_each(|notifier| notifier.count_in(counters.clone()));
    }

    /// Queues.
    #[inline]
    pub fn len(&self) -> usize {
        self.all.len()
    }

    /// Whether there are none.
    #[inline]
    pub fn is_empty(&self) -> bool {
        self.all.is_empty()
    }

    /// The local ports.
    pub fn ports(&self) -> impl Iterator<Item = EventPort> {
        self.all.iter().map(Notifier::port)
    }

    /// Records whether a commit of the queue of this number that published something wants an event.
    ///
    /// # Panics
    /// If there is no such queue.
    #[inline]
    pub fn want(&mut self, number: usize, notify: Notify) {
        self.all[number].want(notify);
    }

    /// Sends the events that were wanted since the last flush.
    ///
    /// # Errors
    /// The first one, as of [`Notifier::flush`]; it does not stop the others.
    #[inline]
    pub fn flush(&mut self) -> Result<()> {
        let mut outcome = Ok(());
        for notifier in &mut self.all {
            outcome = outcome.and(notifier.flush().map(drop));
        }
        outcome
    }

    /// Takes pending events; `false` if there were none.
    ///
    /// # Errors
    /// As [`Notifier::take`].
    pub fn take(&mut self) -> Result<bool> {
        self.all.iter_mut().try_fold(false, |any, notifier| Ok(notifier.take()? || any))
    }

    /// Records whether any queue had any work.
    #[inline]
    pub fn worked(&mut self, any: bool) {
        self.worked |= any;
    }

    /// As [`Notifier::pause`], for all channels.
    pub fn pause(&mut self, now: Duration) -> Option<Duration> {
        let worked = core::mem::take(&mut self.worked);
        let pauses = self.all.iter_mut().filter_map(|notifier| {
            notifier.worked(worked);
            notifier.pause(now)
        });
        pauses.max()
    }

    /// Stops the delivery of events.
    pub fn mask(&mut self) {
        self.all.iter_mut().for_each(Notifier::mask);
    }

    /// Whether the channels are masked.
    pub fn is_masked(&self) -> bool {
        self.all.first().is_some_and(Notifier::is_masked)
    }

    /// Allows the delivery of events again; `true` if one was remembered.
    ///
    /// # Errors
    /// As [`Notifier::unmask`].
    pub fn unmask(&mut self) -> Result<bool> {
        self.all.iter_mut().try_fold(false, |any, notifier| Ok(notifier.unmask()? || any))
    }
}
