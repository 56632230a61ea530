//! The loop that owns the ports: rounds of receive, switch, send, flush; and sleep when there is nothing.

use std::{
    io,
    sync::Arc,
    time::{Duration, Instant},
};

use crossbeam::channel::Receiver;
use nix::sys::eventfd::EventFd;

use crate::{
    Batch, Config, Error, FdbRow, Frames, Port, PortInfo, Reason, Stats, adapt,
    fdb::PortId,
    run::Command,
    switch::{Switch, Tally},
    waiter::Waiter,
};

/// Every port is called at least this often.
const TICK: Duration = Duration::from_secs(1);
/// Ticks between removals of void entries from the forwarding database.
const SWEEP_TICKS: u32 = 16;
/// While ports are busy, sleeping ones are looked after once in so many rounds: a look is a system call.
const LOOK_ROUNDS: u32 = 8;

struct Slot {
    name: String,
    port: Box<dyn Port>,
    stats: Arc<Stats>,
    max_len: usize,
    /// When it last had something to do, while it is being polled; nothing while it is left to its `fd`.
    awake: Option<Instant>,
}

pub(crate) struct Worker {
    name: String,
    spin: Duration,
    started: Instant,
    now: Instant,
    next_tick: Instant,
    ticks: u32,
    rounds: u32,
    switch: Switch,
    slots: Vec<Option<Slot>>,
    dead: Vec<(PortId, io::Error)>,
    stale_caps: bool,
    batch: Batch,
    scratch: Batch,
    ready: Vec<PortId>,
    waiter: Waiter,
    wake: Arc<EventFd>,
    inbox: Receiver<Command>,
}

impl Worker {
    pub(crate) fn new(
        config: &Config,
        seed: u64,
        inbox: Receiver<Command>,
        wake: Arc<EventFd>,
    ) -> io::Result<Worker> {
        let now = Instant::now();
        let burst = config.burst.max(1);
        Ok(Worker {
            name: config.name.clone(),
            spin: config.spin,
            started: now,
            now,
            next_tick: now + TICK,
            ticks: 0,
            rounds: 0,
            switch: Switch::new(config.limits, seed),
            slots: Vec::new(),
            dead: Vec::new(),
            stale_caps: false,
            batch: Batch::new(burst),
            scratch: Batch::new(burst),
            ready: Vec::new(),
            waiter: Waiter::new(&*wake)?,
            wake,
            inbox,
        })
    }

    pub(crate) fn run(mut self) {
        while self.obey() {
            self.now = Instant::now();
            self.tick();
            let worked = self.round();
            self.put_to_sleep();
            if let Err(error) = self.wait(worked) {
                tracing::error!(bridge = self.name, %error, "bridge stops: epoll failed");
                return;
            }
        }
    }

    /// Does what has been asked; `false` when that is to stop.
    fn obey(&mut self) -> bool {
        while let Ok(command) = self.inbox.try_recv() {
            match command {
                Command::Attach(name, port, answer) => drop(answer.send(self.attach(name, port))),
                Command::Detach(name, answer) => drop(answer.send(self.detach(name))),
                Command::Ports(answer) => drop(answer.send(self.port_infos())),
                Command::Fdb(answer) => drop(answer.send(self.fdb_rows())),
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
        for slot in self.slots.iter_mut().flatten() {
            slot.awake.get_or_insert(self.now);
        }
    }

    /// One turn for every port that is awake; whether any of them had frames.
    fn round(&mut self) -> bool {
        let mut worked = false;
        for place in 0..self.slots.len() {
            worked |= self.serve(PortId(place as u16));
        }
        self.flush();
        if std::mem::take(&mut self.stale_caps) {
            self.refresh_caps();
        }
        self.bury();
        worked
    }

    fn serve(&mut self, id: PortId) -> bool {
        let now_s = self.now_s();
        let Some(slot) = awake(&mut self.slots, id) else {
            return false;
        };
        if let Err(error) = slot.port.recv(&mut self.batch) {
            self.dead.push((id, error));
        }
        if self.batch.is_empty() {
            return false;
        }
        slot.awake = Some(self.now);
        let stats = slot.stats.clone();
        let Tally { runts, reserved, work } = self.switch.forward(id, self.batch.frames(), now_s);
        stats.lost(Reason::Runt, runts);
        stats.lost(Reason::Reserved, reserved);
        self.send(work);
        self.batch.clear();
        true
    }

    fn send(&mut self, work: bool) {
        for sending in self.switch.sendings() {
            let Some(Some(slot)) = self.slots.get_mut(usize::from(sending.port.0)) else {
                continue;
            };
            slot.stats.lost(Reason::TooLong, sending.too_long);
            let frames = sending.outbox.view(&self.batch);
            match slot.send(frames, work, &mut self.scratch) {
                Ok(stale) => self.stale_caps |= stale,
                Err(error) => self.dead.push((sending.port, error)),
            }
        }
    }

    fn flush(&mut self) {
        for (place, slot) in self.slots.iter_mut().enumerate() {
            if let Some(Err(error)) = slot.as_mut().map(|slot| slot.port.flush()) {
                self.dead.push((PortId(place as u16), error));
            }
        }
    }

    fn refresh_caps(&mut self) {
        for (place, slot) in self.slots.iter_mut().enumerate() {
            if let Some(slot) = slot {
                slot.max_len = slot.port.caps().max_len();
                self.switch.attach(PortId(place as u16), slot.max_len);
            }
        }
    }

    /// Removes the ports that failed, each with one line in the log.
    fn bury(&mut self) {
        while let Some((id, error)) = self.dead.pop() {
            if let Some(slot) = self.remove(id) {
                tracing::warn!(bridge = self.name, port = slot.name, %error, "port failed and was removed");
            }
        }
    }

    /// Arms the ports that have been quiet for the spinning time.
    fn put_to_sleep(&mut self) {
        for (place, slot) in self.slots.iter_mut().enumerate() {
            let Some(slot) = slot else { continue };
            let quiet = slot.awake.is_some_and(|since| self.now.duration_since(since) >= self.spin);
            match quiet.then(|| slot.port.arm()) {
                Some(Ok(false)) => slot.awake = None,
                Some(Ok(true)) | None => {}
                Some(Err(error)) => self.dead.push((PortId(place as u16), error)),
            }
        }
        self.bury();
    }

    /// Sleeps if every port does; else looks now and then whether one has been notified.
    fn wait(&mut self, worked: bool) -> io::Result<()> {
        self.rounds = self.rounds.wrapping_add(1);
        let all_asleep = self.slots.iter().flatten().all(|slot| slot.awake.is_none());
        let time = match all_asleep {
            true => {
                // What one port's flush let go of, another may still have to answer.
                self.flush();
                // Rounded up: woken a little before the tick, we would spin until it comes.
                self.next_tick.saturating_duration_since(Instant::now()) + Duration::from_millis(1)
            }
            false if worked && !self.rounds.is_multiple_of(LOOK_ROUNDS) => return Ok(()),
            false => Duration::ZERO,
        };
        if self.waiter.wait(time, &mut self.ready)? {
            let _ = self.wake.read();
        }
        if all_asleep {
            self.now = Instant::now();
        }
        for id in self.ready.drain(..) {
            if let Some(Some(slot)) = self.slots.get_mut(usize::from(id.0)) {
                slot.awake.get_or_insert(self.now);
            }
        }
        Ok(())
    }

    fn attach(&mut self, name: String, port: Box<dyn Port>) -> Result<(), Error> {
        if self.find(&name).is_some() {
            return Err(Error::NameTaken(name));
        }
        let Some(id) = self.switch.vacancy() else {
            return Err(Error::NoPlace(name));
        };
        let os = |source| Error::Os { what: format!("bridge {:?}: port {name:?}: epoll", self.name), source };
        self.waiter.add(id, port.fd()).map_err(os)?;
        let max_len = port.caps().max_len();
        self.switch.attach(id, max_len);
        let stats = port.stats().clone();
        let slot = Slot { name, port, stats, max_len, awake: Some(Instant::now()) };
        let place = usize::from(id.0);
        self.slots.resize_with(self.slots.len().max(place + 1), || None);
        self.slots[place] = Some(slot);
        Ok(())
    }

    fn detach(&mut self, name: String) -> Result<Box<dyn Port>, Error> {
        let Some(mut slot) = self.find(&name).and_then(|id| self.remove(id)) else {
            return Err(Error::NoSuchPort(name));
        };
        if let Err(error) = slot.port.flush() {
            tracing::warn!(bridge = self.name, port = name, %error, "port failed while being detached");
        }
        Ok(slot.port)
    }

    fn remove(&mut self, id: PortId) -> Option<Slot> {
        let slot = self.slots.get_mut(usize::from(id.0))?.take()?;
        self.waiter.remove(slot.port.fd());
        self.switch.detach(id);
        Some(slot)
    }

    fn find(&self, name: &str) -> Option<PortId> {
        let place = self.slots.iter().position(|slot| slot.as_ref().is_some_and(|slot| slot.name == name))?;
        Some(PortId(place as u16))
    }

    fn port_infos(&self) -> Vec<PortInfo> {
        let info = |slot: &Slot| PortInfo { name: slot.name.clone(), counters: slot.stats.read() };
        self.slots.iter().flatten().map(info).collect()
    }

    fn fdb_rows(&self) -> Vec<FdbRow> {
        let row = |entry: crate::fdb::Entry| {
            let port = self.slots.get(usize::from(entry.port.0))?.as_ref()?.name.clone();
            Some(FdbRow { mac: entry.station.mac(), port, age_s: entry.age_s })
        };
        self.switch.fdb().entries(self.now_s()).filter_map(row).collect()
    }

    fn now_s(&self) -> u32 {
        self.now.duration_since(self.started).as_secs() as u32
    }
}

impl Slot {
    /// Sends, and says whether the port's mtu is no longer what the switch believes.
    fn send(&mut self, frames: Frames<'_>, work: bool, scratch: &mut Batch) -> io::Result<bool> {
        let caps = self.port.caps();
        if frames.is_empty() {
        } else if work {
            adapt::send(&mut *self.port, &caps, frames, scratch)?;
        } else {
            self.port.send(frames)?;
        }
        Ok(caps.max_len() != self.max_len)
    }
}

fn awake(slots: &mut [Option<Slot>], id: PortId) -> Option<&mut Slot> {
    slots.get_mut(usize::from(id.0))?.as_mut().filter(|slot| slot.awake.is_some())
}
