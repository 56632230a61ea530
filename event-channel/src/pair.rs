//! The event channels of a device with two rings: one for both rings, or one for each
//! (`feature-split-event-channels`).

use crate::{Channel, Notifier, Result};
use alloc::sync::Arc;
use core::time::Duration;
use event_loop::EventCounters;
use ring_abi::EventPort;
use ring_abi::ring::Notify;

/// The notifiers of a transmit and a receive ring, which the drivers use alike in both cases.
///
/// ```
/// use event_channel::{Channel, EventChannels, Notifier, NotifierPair};
/// use hypervisor::local::Sandbox;
/// use ring_abi::DomId;
/// use ring_abi::ring::Notify;
///
/// let sandbox = Sandbox::new()?;
/// let dom0 = sandbox.join(DomId::DOM0)?;
/// let guest = sandbox.join(DomId(1))?;
/// let one = Notifier::new(guest.alloc_unbound(DomId::DOM0)?);
/// let mut pair = NotifierPair::new(one, None);
/// let back = dom0.bind_interdomain(DomId(1), pair.tx_port())?;
/// assert!(back.take()?, "the end that binds starts pending");
/// // Both rings want an event, and share the channel: one event.
/// pair.want_tx(Notify::Yes);
/// pair.want_rx(Notify::Yes);
/// pair.flush()?;
/// assert!(back.take()?);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug)]
pub struct NotifierPair<C: Channel> {
    /// The transmit ring's, or both rings'.
    pub(crate) tx: Notifier<C>,
    pub(crate) rx: Option<Notifier<C>>,
    /// Either ring had work since the last [`NotifierPair::pause`].
    worked: bool,
}

impl<C: Channel> NotifierPair<C> {
    /// `rx` is the receive ring's, if it has its own.
    pub fn new(tx: Notifier<C>, rx: Option<Notifier<C>>) -> Self {
        Self { tx, rx, worked: false }
    }

    /// Counts the events of both in `counters` from now on.
    pub fn count_in(&mut self, counters: &Arc<EventCounters>) {
        self.each_mut().for_each(|notifier| notifier.count_in(counters.clone()));
    }

    /// The local port of the transmit ring, or of both.
    pub fn tx_port(&self) -> EventPort {
        self.tx.port()
    }

    /// The local port of the receive ring, if it has its own.
    pub fn rx_port(&self) -> Option<EventPort> {
        self.rx.as_ref().map(Notifier::port)
    }

    /// Records whether a commit of the transmit ring that published something wants an event.
    #[inline]
    pub fn want_tx(&mut self, notify: Notify) {
        self.tx.want(notify);
    }

    /// Records whether a commit of the receive ring that published something wants an event.
    #[inline]
    pub fn want_rx(&mut self, notify: Notify) {
        self.rx.as_mut().unwrap_or(&mut self.tx).want(notify);
    }

    /// Sends the events that were wanted since the last flush.
    ///
    /// # Errors
    /// As [`Notifier::flush`].
    #[inline]
    pub fn flush(&mut self) -> Result<()> {
        self.tx.flush()?;
        if let Some(rx) = &mut self.rx {
            rx.flush()?;
        }
        Ok(())
    }

    /// Takes pending events; `false` if there were none.
    ///
    /// # Errors
    /// As [`Notifier::take`].
    pub fn take(&mut self) -> Result<bool> {
        let rx = self.rx.as_mut().map_or(Ok(false), Notifier::take)?;
        Ok(self.tx.take()? || rx)
    }

    /// Records whether either ring had any work.
    #[inline]
    pub fn worked(&mut self, any: bool) {
        self.worked |= any;
    }

    /// As [`Notifier::pause`], for both channels.
    pub fn pause(&mut self, now: Duration) -> Option<Duration> {
        let worked = core::mem::take(&mut self.worked);
        let pauses = self.each_mut().filter_map(|notifier| {
            notifier.worked(worked);
            notifier.pause(now)
        });
        pauses.max()
    }

    /// Stops the delivery of events.
    pub fn mask(&mut self) {
        self.each_mut().for_each(Notifier::mask);
    }

    /// Whether the channels are masked.
    pub fn is_masked(&self) -> bool {
        self.tx.is_masked()
    }

    /// Allows the delivery of events again; `true` if one was remembered.
    ///
    /// # Errors
    /// As [`Notifier::unmask`].
    pub fn unmask(&mut self) -> Result<bool> {
        let rx = self.rx.as_mut().map_or(Ok(false), Notifier::unmask)?;
        Ok(self.tx.unmask()? || rx)
    }

    fn each_mut(&mut self) -> impl Iterator<Item = &mut Notifier<C>> {
        [Some(&mut self.tx), self.rx.as_mut()].into_iter().flatten()
    }
}
