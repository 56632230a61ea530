// Not a core: does I/O or calls a hypervisor.

//! The worker: the loop that owns the ports. Each round receives, switches, sends and flushes; it sleeps when every
//! port is idle.

mod administration;
mod awaited;
mod commands;
mod mirrors;
mod safety_net;
mod stations;

use std::{
    io::{self, ErrorKind},
    sync::Arc,
    time::{Duration, Instant},
};

use crossbeam::channel::Receiver;
use event_loop::{Counter, Essential};
use nix::sys::eventfd::EventFd;

use crate::{
    Batch, BridgeSetting, CaptureDirection, Config, DropReason, Frames, Mirror, QueueLimits,
    attached_port::{AttachedPort, Hold, Sender},
    command::{Awaited, Command},
    fdb::PortId,
    poller::Poller,
    switch::{Switch, Turn},
    tick::Tick,
    turn_meter::TurnMeter,
};

/// While ports are busy, the descriptors of armed ones are polled once in so many rounds, as that is a system call.
const POLL_ROUNDS: u32 = 8;

pub(crate) struct Worker {
    name: String,
    busy_poll: Duration,
    limits: QueueLimits,
    announces: bool,
    seed: u64,
    started: Instant,
    now: Instant,
    meter: TurnMeter,
    tick: Tick,
    /// When to look at the ports that had work at the tick and no event.
    check_at: Option<Instant>,
    /// Ports that are held.
    held: usize,
    /// When the next port of which frames wait for its rate is to go on.
    due: Option<Instant>,
    swept_s: u32,
    rounds: u32,
    switch: Switch,
    /// The switch's mirrors, with the names of their ports.
    mirrors: Vec<(String, Mirror)>,
    awaited: Vec<Awaited>,
    ports: Vec<Option<AttachedPort>>,
    failed: Vec<(PortId, io::Error)>,
    /// A port's capabilities may have changed.
    stale_caps: bool,
    batch: Batch,
    scratch: Batch,
    /// Frames of the batch with other tags.
    retagged: Batch,
    ready: Vec<PortId>,
    poller: Poller,
    wake: Arc<EventFd>,
    commands: Receiver<Command>,
}

impl Worker {
    pub(crate) fn new(
        config: &Config,
        seed: u64,
        commands: Receiver<Command>,
        wake: Arc<EventFd>,
    ) -> io::Result<Worker> {
        let now = Instant::now();
        let burst = config.burst.max(1);
        let mut switch = Switch::with(config.forwarding, seed);
        switch.set(BridgeSetting::GroupFwdMask(config.group_fwd_mask));
        Ok(Worker {
            name: config.name.clone(),
            busy_poll: config.busy_poll,
            limits: config.queue,
            announces: config.announces,
            seed,
            started: now,
            now,
            meter: TurnMeter::new(now),
            tick: Tick::new(now),
            check_at: None,
            held: 0,
            due: None,
            swept_s: 0,
            rounds: 0,
            switch,
            mirrors: Vec::new(),
            awaited: Vec::new(),
            ports: Vec::new(),
            failed: Vec::new(),
            stale_caps: false,
            batch: Batch::new(burst),
            scratch: Batch::new(burst),
            retagged: Batch::new(burst),
            ready: Vec::new(),
            poller: Poller::new(&*wake)?,
            wake,
            commands,
        })
    }

    /// The longest round in nanoseconds of the thread's processor time.
    pub(crate) fn longest_turn_ns(&self) -> Arc<Counter> {
        self.meter.longest_ns().clone()
    }

    pub(crate) fn run(mut self) {
        let _essential = Essential;
        while self.run_commands() {
            self.now = Instant::now();
            self.meter.end(self.now);
            self.meter.begin(self.now);
            self.look_at_all();
            self.go_on();
            let worked = self.round();
            if worked {
                self.tick.worked(self.now);
            }
            self.release_holds();
            self.arm_idle();
            if let Err(error) = self.wait(worked) {
                tracing::error!(bridge = self.name, %error, "failed to poll; the bridge stops");
                return;
            }
        }
    }

    /// Serves every polled port once; `true` if any of them had frames, or took some that waited.
    fn round(&mut self) -> bool {
        let mut worked = false;
        let mut owed = false;
        for index in 0..self.ports.len() {
            match self.serve(PortId(index as u16)) {
                Served::Idle => {}
                Served::Worked => worked = true,
                Served::Owes => owed = true,
            }
        }
        if owed && !worked {
            self.ports.iter_mut().flatten().for_each(|attached| attached.turn.forgive());
            worked = true;
        }
        self.flush();
        if std::mem::take(&mut self.stale_caps) {
            self.refresh_caps();
        }
        self.remove_failed();
        worked
    }

    fn serve(&mut self, id: PortId) -> Served {
        let Some(attached) = polled(&mut self.ports, id) else {
            return Served::Idle;
        };
        let drained = attached.drain(self.now).unwrap_or_else(|error| {
            self.failed.push((id, error));
            false
        });
        self.due = earlier(self.due, attached.due());
        let idle = if drained { Served::Worked } else { Served::Idle };
        if !attached.state.needs().input {
            return idle;
        }
        let Some(budget) = attached.turn.begin() else {
            return if drained { Served::Worked } else { Served::Owes };
        };
        let passed = self.now.duration_since(self.started);
        if attached.backlog.is_empty() {
            if !self.receive(id, passed) {
                return idle;
            }
        } else {
            attached.resume(&mut self.batch);
        }
        let summary = self.switch.forward(id, self.batch.frames(), Turn { now: passed, budget });
        let Some(Some(attached)) = self.ports.get_mut(usize::from(id.0)) else { return idle };
        attached.worked(self.now);
        attached.turn.spend(summary.cost);
        attached.stats.moved(summary.moves);
        for (reason, frames) in summary.drops() {
            attached.stats.lost(reason, frames);
            attached.refusals.add(frames);
        }
        let ports = self.switch.egresses().filter(|egress| !egress.are_copies).map(|egress| egress.port);
        let sole = attached.destinations.sole(ports, summary.flooded, self.now);
        self.send(id, sole, summary.offloads);
        if summary.taken < self.batch.len()
            && let Some(Some(attached)) = self.ports.get_mut(usize::from(id.0))
        {
            attached.postpone(&mut self.batch.frames_mut()[summary.taken..]);
        }
        self.batch.clear();
        self.hold_if_refused(id);
        Served::Worked
    }

    /// Receives a port's next frames into the batch; `false` if there are none, or its rate allows none.
    fn receive(&mut self, id: PortId, passed: Duration) -> bool {
        let Some(Some(attached)) = self.ports.get_mut(usize::from(id.0)) else { return false };
        match attached.rate.as_mut().map_or(Ok(usize::MAX), |rate| rate.admit(passed)) {
            Ok(frames) => self.batch.limit(frames),
            Err(wait) => {
                attached.hold(Hold { to: None, until: self.now + wait });
                self.held += 1;
                return false;
            }
        }
        if let Err(error) = self.recv(id) {
            self.failed.push((id, error));
        }
        let Some(Some(attached)) = self.ports.get_mut(usize::from(id.0)) else { return false };
        if let Some(rate) = attached.rate.as_mut().filter(|_| !self.batch.is_empty()) {
            rate.spend(Frames::of(self.batch.frames()), passed);
        }
        let frames = Frames::of(self.batch.frames());
        attached.captures.record(CaptureDirection::FromPort, frames, frames.len(), self.now);
        !self.batch.is_empty()
    }

    /// Receives the batch from a port: into memory of the other port, if it is a wire's and no frames wait for that one.
    fn recv(&mut self, id: PortId) -> io::Result<()> {
        let from = usize::from(id.0);
        if let Some(to) = self.switch.sole_destination(id)
            && let Ok([Some(from), Some(to)]) = self.ports.get_disjoint_mut([from, usize::from(to.0)])
            && to.queue.is_empty()
            && to.rate_in.is_none()
        {
            return from.port.recv_for(&mut *to.port, &mut self.batch);
        }
        match self.ports.get_mut(from).and_then(Option::as_mut) {
            Some(from) => from.port.recv(&mut self.batch),
            None => Ok(()),
        }
    }

    /// Sends the batch, which came from port `from`. It is held if its `sole` destination does not take all frames.
    fn send(&mut self, from: PortId, sole: Option<PortId>, offloads: bool) {
        for egress in self.switch.egresses() {
            let Some(Some(attached)) = self.ports.get_mut(usize::from(egress.port.0)) else {
                continue;
            };
            attached.stats.lost(DropReason::TooLong, egress.too_long);
            attached.stats.lost(DropReason::Lock, egress.locked);
            let frames = match egress.has_other_tags {
                true => self.switch.retag(egress.port, &self.batch, &mut self.retagged),
                false => egress.batch.view(&self.batch),
            };
            // Nobody waits for the rate of one receiver.
            let waits = attached.rate_in.is_none() && !attached.queue.is_stuck(self.now);
            let may_be_held = sole.is_some() && !egress.are_copies && waits;
            let sender = Sender { port: from, may_be_held };
            match attached.send(frames, sender, offloads, &mut self.scratch, self.now) {
                Ok(stale) => self.stale_caps |= stale,
                Err(error) => self.failed.push((egress.port, error)),
            }
            self.due = earlier(self.due, attached.due());
        }
        self.retagged.clear();
        let Some(to) = sole else { return };
        let held = self.ports.get(usize::from(to.0)).and_then(Option::as_ref).map(|to| to.queue.held(from));
        if held.is_some_and(|frames| frames > 0)
            && let Some(Some(attached)) = self.ports.get_mut(usize::from(from.0))
        {
            attached.hold(Hold { to: Some(to), until: self.now + self.limits.hold });
            self.held += 1;
        }
    }

    /// Holds a port that has sent many frames that it may not send.
    #[inline]
    fn hold_if_refused(&mut self, id: PortId) {
        let Some(Some(attached)) = self.ports.get_mut(usize::from(id.0)) else { return };
        if attached.hold.is_none()
            && let Some(until) = attached.refusals.hold(self.now)
        {
            attached.hold(Hold { to: None, until });
            self.held += 1;
        }
    }

    /// Has the frames go on that waited for their ports' rates, where these allow more.
    #[inline]
    fn go_on(&mut self) {
        if self.due.is_some_and(|due| due <= self.now) {
            let ports = self.ports.iter_mut().flatten();
            self.due = ports.fold(None, |due, attached| {
                attached.go_on(self.now);
                earlier(due, attached.due())
            });
        }
    }

    /// Ends the holds of ports whose frames were all sent, or whose rate allows more, and those that have lasted long enough.
    fn release_holds(&mut self) {
        if self.held == 0 {
            return;
        }
        for index in 0..self.ports.len() {
            let id = PortId(index as u16);
            let hold = self.ports[index].as_ref().and_then(|attached| attached.hold);
            let Some(Hold { to, until }) = hold else { continue };
            let full = to.and_then(|to| self.ports.get_mut(usize::from(to.0))?.as_mut());
            let must_wait = full.as_ref().map_or(to.is_none(), |full| full.queue.held(id) > 0);
            if must_wait && self.now < until {
                continue;
            }
            if let Some(full) = full {
                full.stats.lost(DropReason::NoRoom, full.queue.release(id));
                full.wait_to_drain(self.now);
                self.due = earlier(self.due, full.due());
            }
            if let Some(Some(attached)) = self.ports.get_mut(index) {
                attached.release(self.now);
                self.held -= 1;
            }
        }
    }

    fn flush(&mut self) {
        for (index, attached) in self.ports.iter_mut().enumerate() {
            if let Some(Err(error)) = attached.as_mut().map(|attached| attached.port.flush()) {
                self.failed.push((PortId(index as u16), error));
            }
        }
    }

    fn refresh_caps(&mut self) {
        for (index, attached) in self.ports.iter_mut().enumerate() {
            if let Some(attached) = attached {
                attached.caps = attached.port.caps();
                self.switch.set_caps(PortId(index as u16), attached.caps);
            }
        }
    }

    /// Removes the ports that failed or whose peer has gone, with one log line each.
    fn remove_failed(&mut self) {
        while let Some((id, error)) = self.failed.pop() {
            let Some(attached) = self.remove(id) else { continue };
            let bridge = &self.name;
            let port = attached.name;
            match error.kind() {
                ErrorKind::BrokenPipe => tracing::info!(bridge, port, why = %error, "port closed"),
                _ => tracing::warn!(bridge, port, %error, "port failed and was removed"),
            }
        }
    }

    /// Arms the ports that have had nothing to do for the busy-poll time.
    fn arm_idle(&mut self) {
        for (index, attached) in self.ports.iter_mut().enumerate() {
            let Some(attached) = attached.as_mut().filter(|attached| attached.state.is_polled()) else {
                continue;
            };
            if attached.is_worth_polling(self.now, self.busy_poll) {
                continue;
            }
            let id = PortId(index as u16);
            if let Err(error) = attached.arm(self.now) {
                self.failed.push((id, error));
            }
            // The frames of a held port would keep the worker from sleeping.
            let masks = attached.state.needs().is_none();
            if masks != std::mem::replace(&mut attached.is_masked, masks) {
                self.poller.wait_for(id, attached.port.fd(), !masks);
            }
        }
        self.remove_failed();
    }

    /// Sleeps if every port is armed; else polls the armed ones' descriptors from time to time.
    fn wait(&mut self, worked: bool) -> io::Result<()> {
        self.rounds = self.rounds.wrapping_add(1);
        let all_armed = self.ports.iter().flatten().all(|attached| !attached.state.is_polled());
        let time = match all_armed {
            true => {
                // One port's flush may release requests that another port has to respond to.
                self.flush();
                // Rounded up: after a wakeup just before that time the worker would poll until it comes.
                let asleep = Instant::now();
                self.meter.end(asleep);
                self.wake_at().saturating_duration_since(asleep) + Duration::from_millis(1)
            }
            false if worked && !self.rounds.is_multiple_of(POLL_ROUNDS) => return Ok(()),
            false => Duration::ZERO,
        };
        if self.poller.wait(time, &mut self.ready)? {
            let _ = self.wake.read();
        }
        if all_armed {
            self.now = Instant::now();
            self.meter.begin(self.now);
        }
        for id in self.ready.drain(..) {
            if let Some(Some(attached)) = self.ports.get_mut(usize::from(id.0)) {
                attached.wake(self.now);
                if let Err(error) = attached.port.take_events() {
                    self.failed.push((id, error));
                }
            }
        }
        Ok(())
    }

    /// When the worker has something to do without being told.
    fn wake_at(&self) -> Instant {
        let holds = self.ports.iter().flatten().filter_map(|attached| attached.hold).map(|hold| hold.until);
        let holds = if self.held == 0 { None } else { holds.min() };
        [holds, self.check_at, self.due].into_iter().flatten().fold(self.tick.next(), Instant::min)
    }

    fn now_s(&self) -> u32 {
        self.now.duration_since(self.started).as_secs() as u32
    }
}

/// What a port's turn was.
enum Served {
    /// It had nothing to do.
    Idle,
    /// It had frames, or took some that waited.
    Worked,
    /// It owes for earlier turns, and was not received from.
    Owes,
}

fn earlier(one: Option<Instant>, other: Option<Instant>) -> Option<Instant> {
    match (one, other) {
        (Some(one), Some(other)) => Some(one.min(other)),
        (one, other) => one.or(other),
    }
}

fn polled(ports: &mut [Option<AttachedPort>], id: PortId) -> Option<&mut AttachedPort> {
    ports.get_mut(usize::from(id.0))?.as_mut().filter(|attached| attached.state.is_polled())
}
