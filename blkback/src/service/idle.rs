// Not a core: does I/O or calls a hypervisor.

//! What a ring's thread does when it has nothing to do: it polls for a short while, gives back what is not used, and sleeps.

use std::time::{Duration, Instant};

use event_loop::{EventSet, Ready};
use ring_abi::blkif::{Request, Response};
use ring_abi::ring::Protocol;

use super::{CHANNEL, COMMANDS, Service, UNUSED_INTERVAL};
use crate::commands::Commands;
use crate::error::ExitReason;

/// Polls of the ring between two reads of the clock while busy polling.
const POLLS_PER_CLOCK_READ: u32 = 64;

/// How long the loop sleeps at most while the engine has operations that it could not start.
const RETRY_INTERVAL: Duration = Duration::from_millis(1);

/// How long a ring is without requests before memory that large ones have used is given back.
const GIVE_BACK_AFTER: Duration = Duration::from_secs(1);

impl<P: Protocol<Request = Request, Response = Response>> Service<P> {
    /// Polls for a short while before sleeping, unless it is known when to wake up; `true` if there is something to do.
    pub(super) fn busy_poll(&mut self, commands: &Commands) -> Result<bool, ExitReason> {
        let may_poll = !self.config.tuning.busy_poll.is_zero() && !self.lanes.has_waiting();
        if !may_poll || !self.adaptive_poll.should_poll() {
            return Ok(false);
        }
        let start = Instant::now();
        while start.elapsed() < self.config.tuning.busy_poll {
            for _ in 0..POLLS_PER_CLOCK_READ {
                if commands.pending() || self.poll_once()? {
                    self.adaptive_poll.hit();
                    return Ok(true);
                }
                std::hint::spin_loop();
            }
        }
        self.adaptive_poll.miss();
        Ok(false)
    }

    pub(super) fn sleep(&mut self, commands: &Commands) -> Result<(), ExitReason> {
        // Against a frontend that notifies without work (XSA-332).
        if let Some(pause) = self.notifier.limit_events(&self.event_set)? {
            tracing::debug!(?pause, "masking events: the frontend notifies without work");
        }
        let give_back_after = self.give_back_after();
        let ready = self.wait(give_back_after.or_else(|| self.until_due()))?;
        self.stats.count_wakeup();
        if give_back_after.is_some() && ready.is_empty() {
            match self.has_spare {
                true => self.give_back_spare(),
                false => self.give_back_unused(Instant::now()),
            }
        }
        if ready.contains(COMMANDS) {
            commands.take_event();
        }
        if ready.contains(CHANNEL) || ready.contains(EventSet::TIMER) {
            self.notifier.take_events(&self.event_set)?;
        }
        Ok(())
    }

    /// How long until a request's time has come, unless others are to be started before.
    fn until_due(&self) -> Option<Duration> {
        let due = self.lanes.due().filter(|_| !self.guest_data.has_waiting())?;
        Some(due.saturating_duration_since(Instant::now()))
    }

    /// How long the ring is without requests until something is given back.
    fn give_back_after(&self) -> Option<Duration> {
        let is_idle = self.queue.in_flight() == 0;
        let after = self.has_spare.then_some(GIVE_BACK_AFTER);
        after.or_else(|| self.guest_data.keeps_pages().then_some(UNUSED_INTERVAL)).filter(|_| is_idle)
    }

    /// Unmaps persistent grants that nobody uses.
    #[cold]
    pub(super) fn give_back_unused(&mut self, now: Instant) {
        self.given_back = now;
        self.guest_data.give_back_unused();
    }

    /// Gives back memory that large requests have used.
    #[cold]
    fn give_back_spare(&mut self) {
        self.queue.give_back_spare();
        self.segment_pages.give_back_spare();
        self.guest_data.give_back_spare();
        self.has_spare = false;
    }

    /// Waits for something to do, for so long at most.
    pub(super) fn wait(&self, at_most: Option<Duration>) -> Result<Ready, ExitReason> {
        let limit = if self.engine.needs_poll() { Some(RETRY_INTERVAL) } else { at_most };
        self.event_set.wait(limit).map_err(ExitReason::Wait)
    }
}
