// Not a core: does I/O or calls a hypervisor.

//! A port that is attached to a worker, with what the worker knows of it: who looks at it next, the frames that wait for it, and
//! whether it is held.

use std::{
    io,
    sync::Arc,
    time::{Duration, Instant},
};

use event_loop::{AdaptivePoll, Interest, PollState};

use crate::{
    Batch, Caps, DropReason, Frame, Frames, Port, PortSettings, QueueLimits, RateLimits, Stats,
    capture::Captures,
    destinations::Destinations,
    egress_queue::EgressQueue,
    fdb::PortId,
    rate_in::RateIn,
    rate_limit::RateLimit,
    refusals::Refusals,
    software_offload::{self, Outlet},
    turn_budget::TurnBudget,
};

/// Why no frames are received from a port: those that it sent wait for another port, which is full, its rate is used up, or it has
/// sent many that it may not send.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Hold {
    /// The full port; `None` for the other reasons.
    pub(crate) to: Option<PortId>,
    /// When it ends at the latest.
    pub(crate) until: Instant,
}

/// The port that frames come from.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Sender {
    pub(crate) port: PortId,
    /// It is held if any of the frames must wait.
    pub(crate) may_be_held: bool,
}

pub(crate) struct AttachedPort {
    pub(crate) name: String,
    pub(crate) port: Box<dyn Port>,
    pub(crate) stats: Arc<Stats>,
    /// The capabilities that the switch knows.
    pub(crate) caps: Caps,
    /// Whether the worker polls the port, or it is armed.
    pub(crate) state: PollState,
    /// When the port last had frames or took any that waited, or was told of.
    pub(crate) last_active: Instant,
    adaptive_poll: AdaptivePoll,
    /// The port is polled though it had nothing to do in the last round.
    is_waited_for: bool,
    /// The frames that wait for the port.
    pub(crate) queue: EgressQueue,
    pub(crate) destinations: Destinations,
    pub(crate) hold: Option<Hold>,
    /// The port's share of the worker's time.
    pub(crate) turn: TurnBudget,
    /// Frames received that wait for the port's next turn.
    pub(crate) backlog: Vec<Frame>,
    /// Frames dropped as the port may not send them.
    pub(crate) refusals: Refusals,
    /// What is in force for the port.
    pub(crate) settings: PortSettings,
    /// What the port may send.
    pub(crate) rate: Option<RateLimit>,
    /// What the port is sent.
    pub(crate) rate_in: Option<RateIn>,
    /// Frames that are to be cut into segments are cut before they wait for `rate_in`.
    cuts: bool,
    /// Who looks at the frames that cross it.
    pub(crate) captures: Captures,
    /// The port's descriptor is not waited for.
    pub(crate) is_masked: bool,
    /// At the tick there was work, and no event for it: it may still be on its way.
    pub(crate) is_suspect: bool,
}

impl AttachedPort {
    pub(crate) fn new(name: String, port: Box<dyn Port>, queue: EgressQueue, now: Instant) -> AttachedPort {
        AttachedPort {
            name,
            stats: port.stats().clone(),
            caps: port.caps(),
            port,
            state: PollState::new(Interest::INPUT),
            last_active: now,
            adaptive_poll: AdaptivePoll::default(),
            is_waited_for: false,
            queue,
            destinations: Destinations::default(),
            hold: None,
            turn: TurnBudget::default(),
            backlog: Vec::new(),
            refusals: Refusals::default(),
            settings: PortSettings::default(),
            rate: None,
            rate_in: None,
            cuts: false,
            captures: Captures::default(),
            is_masked: false,
            is_suspect: false,
        }
    }

    /// Polls the port from now on.
    pub(crate) fn wake(&mut self, now: Instant) {
        self.is_suspect = false;
        if !self.state.is_polled() {
            self.state.wake();
            self.last_active = now;
        }
    }

    /// Sends frames; those that the port does not take wait. `true` if the port's capabilities are no longer those that the
    /// switch has.
    pub(crate) fn send(
        &mut self,
        frames: Frames<'_>,
        sender: Sender,
        offloads: bool,
        scratch: &mut Batch,
        now: Instant,
    ) -> io::Result<bool> {
        let caps = self.port.caps();
        let takes = if self.cuts { Caps { gso_v4: false, gso_v6: false, ..caps } } else { caps };
        let AttachedPort { port, queue, rate_in, captures, stats, .. } = self;
        let mut outlet = PortOutlet { port: &mut **port, queue, rate_in, captures, stats, sender, now };
        if frames.is_empty() {
        } else if offloads {
            software_offload::send(&takes, stats, frames, scratch, &mut outlet)?;
        } else {
            outlet.send(frames)?;
        }
        if !self.queue.is_empty() {
            let was_polled = self.state.is_polled();
            self.wait_to_drain(now);
            if !was_polled && self.state.is_polled() {
                self.last_active = now;
            }
        }
        Ok(caps != self.caps)
    }

    /// Sends the frames that wait, as far as the port takes them; `true` if it took any.
    #[inline]
    pub(crate) fn drain(&mut self, now: Instant) -> io::Result<bool> {
        if self.queue.is_empty() { Ok(false) } else { self.drain_some(now) }
    }

    fn drain_some(&mut self, now: Instant) -> io::Result<bool> {
        let mut any = false;
        while !self.queue.is_empty() {
            let most = self.rate_in.as_mut().map_or(usize::MAX, |rate_in| rate_in.admit(now));
            if most == 0 {
                break;
            }
            let staged = self.queue.stage(most);
            let count = staged.len();
            let admitted =
                self.rate_in.as_mut().map_or(count, |rate_in| rate_in.count(Frames::of(staged), now));
            let frames = Frames::of(staged).first(admitted);
            self.captures.stage(frames);
            let taken = self.port.send(frames)?;
            self.captures.sent(taken, now);
            if taken > 0 {
                if let Some(rate_in) = &mut self.rate_in {
                    rate_in.spend(Frames::of(staged).first(taken), now);
                }
                self.queue.taken(taken, now);
                self.worked(now);
                any = true;
            }
            if taken < count {
                break;
            }
        }
        self.wait_to_drain(now);
        Ok(any)
    }

    /// Has the frames that wait wait on: for the port's room, or for its rate.
    pub(crate) fn wait_to_drain(&mut self, now: Instant) {
        let waits = !self.queue.is_empty();
        let due = match &mut self.rate_in {
            Some(rate_in) if waits => rate_in.wait(now),
            Some(rate_in) => {
                rate_in.end();
                None
            }
            None => None,
        };
        self.state.need_room(waits && due.is_none());
    }

    /// When the port's rate allows more of the frames that wait; `None` if they do not wait for that.
    #[inline]
    pub(crate) fn due(&self) -> Option<Instant> {
        self.rate_in.as_ref().and_then(RateIn::due)
    }

    /// Has the frames that waited for the port's rate go on if it allows more of them by now.
    pub(crate) fn go_on(&mut self, now: Instant) {
        if self.rate_in.as_mut().is_some_and(|rate_in| rate_in.is_over(now)) {
            self.queue.waits_from(now);
            self.state.need_room(true);
            self.last_active = now;
        }
    }

    /// Sets what the port is sent, on a bridge whose queues have the bounds `most`.
    pub(crate) fn set_rate_in(&mut self, limits: RateLimits, most: QueueLimits, now: Instant) {
        self.rate_in = RateIn::new(limits, self.rate_in.is_some(), now);
        self.cuts = self.rate_in.as_ref().is_some_and(|rate_in| rate_in.cuts(most));
        let bounds = self.rate_in.as_ref().map_or(most, |rate_in| rate_in.queue(most));
        self.stats.lost(DropReason::RateIn, self.queue.set_limits(bounds));
        self.queue.waits_from(now);
        self.wait_to_drain(now);
    }

    /// Records that the port had frames or took some: polling it was worth while.
    #[inline]
    pub(crate) fn worked(&mut self, now: Instant) {
        self.last_active = now;
        if std::mem::take(&mut self.is_waited_for) {
            self.adaptive_poll.hit();
        }
    }

    /// Whether to poll the port on rather than arm it, after a round that may have found nothing: for `busy_poll` after it was
    /// last active, unless that has led to nothing before.
    #[inline]
    pub(crate) fn is_worth_polling(&mut self, now: Instant, busy_poll: Duration) -> bool {
        if !self.backlog.is_empty() && self.state.needs().input {
            return true;
        }
        if self.state.needs().is_none() || now.duration_since(self.last_active) >= busy_poll {
            return false;
        }
        // Frames that wait hold their sender, which a wake-up that comes late on a busy machine would outlast.
        if !self.is_waited_for && !self.adaptive_poll.should_poll() && !self.state.needs().room {
            return false;
        }
        self.is_waited_for = true;
        true
    }

    /// Arms the port for all that is needed of it. It stays polled if something was there already.
    pub(crate) fn arm(&mut self, now: Instant) -> io::Result<()> {
        self.is_suspect = false;
        self.state.need_room(!self.queue.is_empty() && self.due().is_none());
        let needs = self.state.needs();
        let found = !needs.is_none() && self.port.arm(needs)?;
        self.state.armed(found);
        if std::mem::take(&mut self.is_waited_for) || found {
            self.adaptive_poll.ended(found, now.duration_since(self.last_active));
        }
        Ok(())
    }

    /// Whether an armed port has something that it was armed for.
    pub(crate) fn is_ready(&mut self) -> io::Result<bool> {
        let needs = self.state.needs();
        Ok(!self.state.is_polled() && !needs.is_none() && self.port.is_ready(needs)?)
    }

    /// Receives no more from the port.
    pub(crate) fn hold(&mut self, hold: Hold) {
        self.hold = Some(hold);
        self.state.need_input(false);
    }

    /// Receives from the port again.
    pub(crate) fn release(&mut self, now: Instant) {
        self.hold = None;
        self.state.need_input(true);
        if !self.backlog.is_empty() {
            self.state.wake();
        }
        self.last_active = now;
    }

    /// Puts frames that were received and not served off to the port's next turn, and empties them.
    pub(crate) fn postpone(&mut self, frames: &mut [Frame]) {
        self.backlog.extend(frames.iter_mut().map(std::mem::take));
    }

    /// Moves the frames that were put off into `batch`, which is empty and was so large when they were received.
    pub(crate) fn resume(&mut self, batch: &mut Batch) {
        batch.limit(usize::MAX);
        for frame in self.backlog.drain(..) {
            if let Some(slot) = batch.slot() {
                *slot = frame;
            }
        }
    }

    /// Drops the frames that wait.
    pub(crate) fn close(&mut self) {
        self.stats.lost(DropReason::Down, self.queue.clear() + self.backlog.len() as u64);
        self.backlog = Vec::new();
    }
}

/// The port, and its queue for what it does not take.
struct PortOutlet<'a> {
    port: &'a mut dyn Port,
    queue: &'a mut EgressQueue,
    rate_in: &'a mut Option<RateIn>,
    captures: &'a mut Captures,
    stats: &'a Stats,
    sender: Sender,
    now: Instant,
}

impl Outlet for PortOutlet<'_> {
    fn send(&mut self, frames: Frames<'_>) -> io::Result<()> {
        let PortOutlet { queue, rate_in, captures, sender, now, .. } = self;
        let taken = if queue.is_empty() {
            let admitted = rate_in.as_mut().map_or(frames.len(), |rate_in| rate_in.count(frames, *now));
            captures.stage(frames.first(admitted));
            let taken = self.port.send(frames.first(admitted))?;
            captures.sent(taken, *now);
            if let Some(rate_in) = rate_in {
                rate_in.spend(frames.first(taken), *now);
            }
            taken
        } else {
            0
        };
        if taken > 0 {
            queue.end_stall();
        }
        if taken < frames.len() {
            let rest = frames.iter().skip(taken);
            let dropped = rest.map(|frame| queue.push(frame, sender.port, sender.may_be_held, *now)).sum();
            self.stats.lost(self.full(), dropped);
        }
        Ok(())
    }

    fn has_room(&self, frame: &Frame) -> bool {
        self.sender.may_be_held || self.queue.has_room(frame, self.sender.port)
    }

    fn full(&self) -> DropReason {
        if self.rate_in.is_some() { DropReason::RateIn } else { DropReason::NoRoom }
    }
}
