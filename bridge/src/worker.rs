// Not a core: does I/O or calls a hypervisor.

//! The worker: the loop that owns the ports. Each round receives, switches, sends and flushes; it sleeps when every
//! port is idle.

mod safety_net;

use std::{
    io::{self, ErrorKind},
    sync::Arc,
    time::{Duration, Instant},
};

use crossbeam::channel::Receiver;
use event_loop::Essential;
use nix::sys::eventfd::EventFd;

use crate::{
    Batch, Config, DropReason, Error, FdbRow, Port, PortInfo, QueueLimits, Rate,
    attached_port::{AttachedPort, Hold, Sender},
    command::Command,
    egress_queue::EgressQueue,
    fdb::PortId,
    poller::Poller,
    rate_limit::RateLimit,
    switch::{BatchSummary, Switch},
    tick::Tick,
};

/// While ports are busy, the descriptors of armed ones are polled once in so many rounds, as that is a system call.
const POLL_ROUNDS: u32 = 8;

pub(crate) struct Worker {
    name: String,
    busy_poll: Duration,
    limits: QueueLimits,
    seed: u64,
    started: Instant,
    now: Instant,
    tick: Tick,
    /// When to look at the ports that had work at the tick and no event.
    check_at: Option<Instant>,
    /// Ports that are held.
    held: usize,
    swept_s: u32,
    rounds: u32,
    switch: Switch,
    ports: Vec<Option<AttachedPort>>,
    failed: Vec<(PortId, io::Error)>,
    /// A port's capabilities may have changed.
    stale_caps: bool,
    batch: Batch,
    scratch: Batch,
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
        Ok(Worker {
            name: config.name.clone(),
            busy_poll: config.busy_poll,
            limits: config.queue,
            seed,
            started: now,
            now,
            tick: Tick::new(now),
            check_at: None,
            held: 0,
            swept_s: 0,
            rounds: 0,
            switch: Switch::with(config.forwarding, seed),
            ports: Vec::new(),
            failed: Vec::new(),
            stale_caps: false,
            batch: Batch::new(burst),
            scratch: Batch::new(burst),
            ready: Vec::new(),
            poller: Poller::new(&*wake)?,
            wake,
            commands,
        })
    }

    pub(crate) fn run(mut self) {
        let _essential = Essential;
        while self.run_commands() {
            self.now = Instant::now();
            self.look_at_all();
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

    /// Executes the commands received; `false` for [`Command::Stop`].
    fn run_commands(&mut self) -> bool {
        while let Ok(command) = self.commands.try_recv() {
            match command {
                Command::Attach(name, port, rate, reply) => {
                    drop(reply.send(self.attach(name, port, rate)));
                }
                Command::SetRate(name, rate, reply) => drop(reply.send(self.set_rate(&name, rate))),
                Command::Detach(name, reply) => drop(reply.send(self.detach(name))),
                Command::Ports(reply) => drop(reply.send(self.port_infos())),
                Command::Fdb(reply) => drop(reply.send(self.fdb_rows())),
                Command::Stop => return false,
            }
        }
        true
    }

    /// Serves every polled port once; `true` if any of them had frames, or took some that waited.
    fn round(&mut self) -> bool {
        let mut worked = false;
        for index in 0..self.ports.len() {
            worked |= self.serve(PortId(index as u16));
        }
        self.flush();
        if std::mem::take(&mut self.stale_caps) {
            self.refresh_caps();
        }
        self.remove_failed();
        worked
    }

    fn serve(&mut self, id: PortId) -> bool {
        let now_s = self.now_s();
        let Some(attached) = polled(&mut self.ports, id) else {
            return false;
        };
        let drained = attached.drain(self.now).unwrap_or_else(|error| {
            self.failed.push((id, error));
            false
        });
        if !attached.state.needs().input {
            return drained;
        }
        let passed = self.now.duration_since(self.started);
        match attached.rate.as_mut().map_or(Ok(usize::MAX), |rate| rate.admit(passed)) {
            Ok(frames) => self.batch.limit(frames),
            Err(wait) => {
                attached.hold(Hold { to: None, until: self.now + wait });
                self.held += 1;
                return drained;
            }
        }
        if let Err(error) = self.recv(id) {
            self.failed.push((id, error));
        }
        let Some(attached) = self.ports.get_mut(usize::from(id.0)).and_then(Option::as_mut) else {
            return drained;
        };
        if self.batch.is_empty() {
            return drained;
        }
        if let Some(rate) = &mut attached.rate {
            rate.spend(self.batch.frames(), passed);
        }
        attached.worked(self.now);
        let BatchSummary { runts, bad_sources, reserved, offloads, flooded } =
            self.switch.forward(id, self.batch.frames(), now_s);
        attached.stats.lost(DropReason::Runt, runts);
        attached.stats.lost(DropReason::BadSource, bad_sources);
        attached.stats.lost(DropReason::Reserved, reserved);
        let ports = self.switch.egresses().map(|egress| egress.port);
        let sole = attached.destinations.sole(ports, flooded, self.now);
        self.send(id, sole, offloads);
        self.batch.clear();
        true
    }

    /// Receives the batch from a port: into memory of the other port, if it is a wire's and no frames wait for that one.
    fn recv(&mut self, id: PortId) -> io::Result<()> {
        let from = usize::from(id.0);
        if let Some(to) = self.switch.sole_destination(id)
            && let Ok([Some(from), Some(to)]) = self.ports.get_disjoint_mut([from, usize::from(to.0)])
            && to.queue.is_empty()
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
            let frames = egress.batch.view(&self.batch);
            let may_be_held = sole.is_some() && !attached.queue.is_stuck(self.now);
            let sender = Sender { port: from, may_be_held };
            match attached.send(frames, sender, offloads, &mut self.scratch, self.now) {
                Ok(stale) => self.stale_caps |= stale,
                Err(error) => self.failed.push((egress.port, error)),
            }
        }
        let Some(to) = sole else { return };
        let held = self.ports.get(usize::from(to.0)).and_then(Option::as_ref).map(|to| to.queue.held(from));
        if held.is_some_and(|frames| frames > 0)
            && let Some(Some(attached)) = self.ports.get_mut(usize::from(from.0))
        {
            attached.hold(Hold { to: Some(to), until: self.now + self.limits.hold });
            self.held += 1;
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
                full.state.need_room(!full.queue.is_empty());
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
                attached.max_len = attached.port.caps().max_len();
                self.switch.attach(PortId(index as u16), attached.max_len);
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
                self.wake_at().saturating_duration_since(Instant::now()) + Duration::from_millis(1)
            }
            false if worked && !self.rounds.is_multiple_of(POLL_ROUNDS) => return Ok(()),
            false => Duration::ZERO,
        };
        if self.poller.wait(time, &mut self.ready)? {
            let _ = self.wake.read();
        }
        if all_armed {
            self.now = Instant::now();
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
        [holds, self.check_at].into_iter().flatten().fold(self.tick.next(), Instant::min)
    }

    fn attach(&mut self, name: String, port: Box<dyn Port>, rate: Option<Rate>) -> Result<(), Error> {
        if self.find(&name).is_some() {
            return Err(Error::NameTaken(name));
        }
        let Some(id) = self.switch.free_port_id() else {
            return Err(Error::TooManyPorts { name, max: self.switch.max_ports() });
        };
        let os = |error| Error::Os { what: format!("bridge {:?}: port {name:?}: epoll", self.name), error };
        self.poller.add(id, port.fd()).map_err(os)?;
        let queue = EgressQueue::new(self.limits, self.seed);
        let mut attached = AttachedPort::new(name, port, queue, Instant::now());
        attached.rate = self.limit(rate);
        self.switch.attach(id, attached.max_len);
        let index = usize::from(id.0);
        self.ports.resize_with(self.ports.len().max(index + 1), || None);
        self.ports[index] = Some(attached);
        Ok(())
    }

    /// What a port may send from now on.
    fn limit(&self, rate: Option<Rate>) -> Option<RateLimit> {
        rate.and_then(|rate| RateLimit::new(rate, self.started.elapsed()))
    }

    fn set_rate(&mut self, name: &str, rate: Option<Rate>) -> Result<(), Error> {
        let id = self.find(name).ok_or_else(|| Error::NoSuchPort(name.to_owned()))?;
        let limit = self.limit(rate);
        if let Some(Some(attached)) = self.ports.get_mut(usize::from(id.0)) {
            attached.rate = limit;
            // A port that the earlier rate holds is looked at again.
            if let Some(hold) = attached.hold.as_mut().filter(|hold| hold.to.is_none()) {
                hold.until = self.now;
            }
        }
        Ok(())
    }

    fn detach(&mut self, name: String) -> Result<Box<dyn Port>, Error> {
        let Some(mut attached) = self.find(&name).and_then(|id| self.remove(id)) else {
            return Err(Error::NoSuchPort(name));
        };
        if let Err(error) = attached.port.flush() {
            tracing::warn!(bridge = self.name, port = name, %error, "failed to flush a port before detaching it");
        }
        Ok(attached.port)
    }

    fn remove(&mut self, id: PortId) -> Option<AttachedPort> {
        let mut attached = self.ports.get_mut(usize::from(id.0))?.take()?;
        self.poller.remove(attached.port.fd());
        self.switch.detach(id);
        attached.close();
        if let Some(Hold { to, .. }) = attached.hold {
            self.held -= 1;
            let full = to.and_then(|to| self.ports.get_mut(usize::from(to.0))?.as_mut());
            if let Some(full) = full {
                full.stats.lost(DropReason::NoRoom, full.queue.release(id));
            }
        }
        Some(attached)
    }

    fn find(&self, name: &str) -> Option<PortId> {
        let index = self
            .ports
            .iter()
            .position(|attached| attached.as_ref().is_some_and(|attached| attached.name == name))?;
        Some(PortId(index as u16))
    }

    fn port_infos(&self) -> Vec<PortInfo> {
        let info = |attached: &AttachedPort| PortInfo {
            name: attached.name.clone(),
            counters: attached.stats.read(),
        };
        self.ports.iter().flatten().map(info).collect()
    }

    fn fdb_rows(&self) -> Vec<FdbRow> {
        let row = |entry: crate::fdb::Entry| {
            let port = self.ports.get(usize::from(entry.port.0))?.as_ref()?.name.clone();
            Some(FdbRow { mac: entry.station.mac(), port, age_s: entry.age_s })
        };
        self.switch.fdb().into_iter().flat_map(|fdb| fdb.entries(self.now_s())).filter_map(row).collect()
    }

    fn now_s(&self) -> u32 {
        self.now.duration_since(self.started).as_secs() as u32
    }
}

fn polled(ports: &mut [Option<AttachedPort>], id: PortId) -> Option<&mut AttachedPort> {
    ports.get_mut(usize::from(id.0))?.as_mut().filter(|attached| attached.state.is_polled())
}
