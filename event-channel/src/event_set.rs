// Not a core: does I/O or calls a hypervisor.

//! Notifiers in an [`EventSet`], whose timer ends their masks.

use crate::{Error, Notifier, NotifierPair, Notifiers, Result, WaitChannel};
use event_loop::EventSet;
use std::io;
use std::time::Duration;

impl<C: WaitChannel> Notifier<C> {
    /// Adds the channel to `set`, which then reports its events by `token`.
    ///
    /// # Errors
    /// As [`EventSet::add`].
    pub fn register(&self, set: &EventSet, token: u64) -> io::Result<()> {
        set.add(&self.channel, token)
    }

    /// Removes the channel from `set`, where nobody waits for the end of its mask then.
    pub fn unregister(&self, set: &EventSet) {
        set.remove(&self.channel);
        if self.is_masked() {
            // Otherwise the set would be ready for good, for a timer that nobody takes. `timerfd_settime` does not fail.
            let _ = set.timer().cancel();
        }
    }

    /// Takes the pending event, as [`Notifier::take`], and ends a mask whose time is over. To be called whenever the
    /// set was ready: while the channel is masked, one more event may be.
    ///
    /// # Errors
    /// As [`Notifier::take`] and [`Notifier::unmask`].
    pub fn take_events(&mut self, set: &EventSet) -> Result<bool> {
        let remembered = mask_ends(self.is_masked(), set)? && self.unmask()?;
        Ok(self.take()? || remembered)
    }

    /// Masks the channel for a while if the peer has sent too many events without work, and returns for how long. To be
    /// called before the set is waited for. The set becomes ready when the mask ends, and the rings are to be polled
    /// then.
    ///
    /// # Errors
    /// [`Error::Hypervisor`] where the timer cannot be set.
    pub fn limit_events(&mut self, set: &EventSet) -> Result<Option<Duration>> {
        let pause = self.pause(set.elapsed());
        if let Some(pause) = pause {
            self.mask();
            end_mask_after(pause, set)?;
        }
        Ok(pause)
    }
}

impl<C: WaitChannel> NotifierPair<C> {
    /// As [`Notifier::register`], for both channels.
    ///
    /// # Errors
    /// As [`EventSet::add`].
    pub fn register(&self, set: &EventSet, token: u64) -> io::Result<()> {
        self.tx.register(set, token)?;
        self.rx.as_ref().map_or(Ok(()), |rx| rx.register(set, token))
    }

    /// Removes both channels from `set`.
    pub fn unregister(&self, set: &EventSet) {
        self.tx.unregister(set);
        if let Some(rx) = &self.rx {
            rx.unregister(set);
        }
    }

    /// As [`Notifier::take_events`], for both channels.
    ///
    /// # Errors
    /// As [`Notifier::take`] and [`Notifier::unmask`].
    pub fn take_events(&mut self, set: &EventSet) -> Result<bool> {
        let remembered = mask_ends(self.is_masked(), set)? && self.unmask()?;
        Ok(self.take()? || remembered)
    }

    /// As [`Notifier::limit_events`], for both channels.
    ///
    /// # Errors
    /// [`Error::Hypervisor`] where the timer cannot be set.
    pub fn limit_events(&mut self, set: &EventSet) -> Result<Option<Duration>> {
        let pause = self.pause(set.elapsed());
        if let Some(pause) = pause {
            self.mask();
            end_mask_after(pause, set)?;
        }
        Ok(pause)
    }
}

impl<C: WaitChannel> Notifiers<C> {
    /// As [`Notifier::register`], for all channels: `set` reports the events of queue `n` by the token `first + n`.
    ///
    /// # Errors
    /// As [`EventSet::add`].
    pub fn register(&self, set: &EventSet, first: u64) -> io::Result<()> {
        (first..).zip(&self.all).try_for_each(|(token, notifier)| notifier.register(set, token))
    }

    /// Removes all channels from `set`.
    pub fn unregister(&self, set: &EventSet) {
        self.all.iter().for_each(|notifier| notifier.unregister(set));
    }

    /// As [`Notifier::take_events`], for all channels.
    ///
    /// # Errors
    /// As [`Notifier::take`] and [`Notifier::unmask`].
    pub fn take_events(&mut self, set: &EventSet) -> Result<bool> {
        let remembered = mask_ends(self.is_masked(), set)? && self.unmask()?;
        Ok(self.take()? || remembered)
    }

    /// As [`Notifier::limit_events`], for all channels.
    ///
    /// # Errors
    /// [`Error::Hypervisor`] where the timer cannot be set.
    pub fn limit_events(&mut self, set: &EventSet) -> Result<Option<Duration>> {
        let pause = self.pause(set.elapsed());
        if let Some(pause) = pause {
            self.mask();
            end_mask_after(pause, set)?;
        }
        Ok(pause)
    }
}

fn mask_ends(is_masked: bool, set: &EventSet) -> Result<bool> {
    Ok(is_masked && set.timer().take().map_err(timer_error)?)
}

fn end_mask_after(pause: Duration, set: &EventSet) -> Result<()> {
    set.timer().expire_after(pause).map_err(timer_error)
}

fn timer_error(error: io::Error) -> Error {
    Error::Hypervisor(format!("the timer of masked events: {error}").into())
}
