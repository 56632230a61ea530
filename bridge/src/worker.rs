// Not a core: does I/O or calls a hypervisor.

//! The worker: the loop that owns the ports. Each round receives, switches, sends and flushes; it sleeps when every
//! port is idle.

use std::{
    io,
    sync::Arc,
    time::{Duration, Instant},
};

use crossbeam::channel::Receiver;
use nix::sys::eventfd::EventFd;

use crate::{
    Batch, Config, DropReason, Error, FdbRow, Frames, Port, PortInfo, Stats,
    command::Command,
    fdb::PortId,
    poller::Poller,
    software_offload,
    switch::{BatchSummary, Switch},
};

/// Every port is called at least this often.
const TICK: Duration = Duration::from_secs(1);
/// Ticks between removals of expired entries from the forwarding database.
const SWEEP_TICKS: u32 = 16;
/// While ports are busy, the descriptors of armed ones are polled once in so many rounds, as that is a system call.
const POLL_ROUNDS: u32 = 8;

struct AttachedPort {
    name: String,
    port: Box<dyn Port>,
    stats: Arc<Stats>,
    max_len: usize,
    /// When the port last had frames, while it is polled; `None` while it is armed.
    last_active: Option<Instant>,
}

pub(crate) struct Worker {
    name: String,
    busy_poll: Duration,
    started: Instant,
    now: Instant,
    next_tick: Instant,
    ticks: u32,
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
            started: now,
            now,
            next_tick: now + TICK,
            ticks: 0,
            rounds: 0,
            switch: Switch::new(config.limits, seed),
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
        while self.run_commands() {
            self.now = Instant::now();
            self.tick();
            let received = self.round();
            self.arm_idle();
            if let Err(error) = self.wait(received) {
                tracing::error!(bridge = self.name, %error, "failed to poll; the bridge stops");
                return;
            }
        }
    }

    /// Executes the commands received; `false` for [`Command::Stop`].
    fn run_commands(&mut self) -> bool {
        while let Ok(command) = self.commands.try_recv() {
            match command {
                Command::Attach(name, port, reply) => drop(reply.send(self.attach(name, port))),
                Command::Detach(name, reply) => drop(reply.send(self.detach(name))),
                Command::Ports(reply) => drop(reply.send(self.port_infos())),
                Command::Fdb(reply) => drop(reply.send(self.fdb_rows())),
                Command::Stop => return false,
            }
        }
        true
    }

    fn tick(&mut self) {
        if self.now < self.next_tick {
            return;
        }
        self.next_tick = self.now + TICK;
        self.ticks = self.ticks.wrapping_add(1);
        if self.ticks.is_multiple_of(SWEEP_TICKS) {
            self.switch.sweep(self.now_s());
        }
        self.stale_caps = true;
        for attached in self.ports.iter_mut().flatten() {
            attached.last_active.get_or_insert(self.now);
        }
    }

    /// Serves every polled port once; `true` if any of them had frames.
    fn round(&mut self) -> bool {
        let mut received = false;
        for index in 0..self.ports.len() {
            received |= self.serve(PortId(index as u16));
        }
        self.flush();
        if std::mem::take(&mut self.stale_caps) {
            self.refresh_caps();
        }
        self.remove_failed();
        received
    }

    fn serve(&mut self, id: PortId) -> bool {
        let now_s = self.now_s();
        let Some(attached) = polled(&mut self.ports, id) else {
            return false;
        };
        if let Err(error) = attached.port.recv(&mut self.batch) {
            self.failed.push((id, error));
        }
        if self.batch.is_empty() {
            return false;
        }
        attached.last_active = Some(self.now);
        let stats = attached.stats.clone();
        let BatchSummary { runts, reserved, offloads } = self.switch.forward(id, self.batch.frames(), now_s);
        stats.lost(DropReason::Runt, runts);
        stats.lost(DropReason::Reserved, reserved);
        self.send(offloads);
        self.batch.clear();
        true
    }

    fn send(&mut self, offloads: bool) {
        for egress in self.switch.egresses() {
            let Some(Some(attached)) = self.ports.get_mut(usize::from(egress.port.0)) else {
                continue;
            };
            attached.stats.lost(DropReason::TooLong, egress.too_long);
            let frames = egress.batch.view(&self.batch);
            match attached.send(frames, offloads, &mut self.scratch) {
                Ok(stale) => self.stale_caps |= stale,
                Err(error) => self.failed.push((egress.port, error)),
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

    /// Removes the ports that failed, with one log line each.
    fn remove_failed(&mut self) {
        while let Some((id, error)) = self.failed.pop() {
            if let Some(attached) = self.remove(id) {
                tracing::warn!(bridge = self.name, port = attached.name, %error, "port failed and was removed");
            }
        }
    }

    /// Arms the ports that have had no frames for the busy-poll time.
    fn arm_idle(&mut self) {
        for (index, attached) in self.ports.iter_mut().enumerate() {
            let Some(attached) = attached else { continue };
            let idle =
                attached.last_active.is_some_and(|since| self.now.duration_since(since) >= self.busy_poll);
            match idle.then(|| attached.port.arm()) {
                Some(Ok(false)) => attached.last_active = None,
                Some(Ok(true)) | None => {}
                Some(Err(error)) => self.failed.push((PortId(index as u16), error)),
            }
        }
        self.remove_failed();
    }

    /// Sleeps if every port is armed; else polls the armed ones' descriptors from time to time.
    fn wait(&mut self, received: bool) -> io::Result<()> {
        self.rounds = self.rounds.wrapping_add(1);
        let all_armed = self.ports.iter().flatten().all(|attached| attached.last_active.is_none());
        let time = match all_armed {
            true => {
                // One port's flush may release requests that another port has to respond to.
                self.flush();
                // Rounded up: after a wakeup just before the tick the worker would poll until the tick.
                self.next_tick.saturating_duration_since(Instant::now()) + Duration::from_millis(1)
            }
            false if received && !self.rounds.is_multiple_of(POLL_ROUNDS) => return Ok(()),
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
                attached.last_active.get_or_insert(self.now);
            }
        }
        Ok(())
    }

    fn attach(&mut self, name: String, port: Box<dyn Port>) -> Result<(), Error> {
        if self.find(&name).is_some() {
            return Err(Error::NameTaken(name));
        }
        let Some(id) = self.switch.free_port_id() else {
            return Err(Error::TooManyPorts(name));
        };
        let os = |error| Error::Os { what: format!("bridge {:?}: port {name:?}: epoll", self.name), error };
        self.poller.add(id, port.fd()).map_err(os)?;
        let max_len = port.caps().max_len();
        self.switch.attach(id, max_len);
        let stats = port.stats().clone();
        let attached = AttachedPort { name, port, stats, max_len, last_active: Some(Instant::now()) };
        let index = usize::from(id.0);
        self.ports.resize_with(self.ports.len().max(index + 1), || None);
        self.ports[index] = Some(attached);
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
        let attached = self.ports.get_mut(usize::from(id.0))?.take()?;
        self.poller.remove(attached.port.fd());
        self.switch.detach(id);
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
        self.switch.fdb().entries(self.now_s()).filter_map(row).collect()
    }

    fn now_s(&self) -> u32 {
        self.now.duration_since(self.started).as_secs() as u32
    }
}

impl AttachedPort {
    /// Sends frames; `true` if the port's mtu is no longer the one that the switch has.
    fn send(&mut self, frames: Frames<'_>, offloads: bool, scratch: &mut Batch) -> io::Result<bool> {
        let caps = self.port.caps();
        if frames.is_empty() {
        } else if offloads {
            software_offload::send(&mut *self.port, &caps, frames, scratch)?;
        } else {
            self.port.send(frames)?;
        }
        Ok(caps.max_len() != self.max_len)
    }
}

fn polled(ports: &mut [Option<AttachedPort>], id: PortId) -> Option<&mut AttachedPort> {
    ports.get_mut(usize::from(id.0))?.as_mut().filter(|attached| attached.last_active.is_some())
}
