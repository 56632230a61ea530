//! One ring's loop: take, reach the pages, submit; poll, let go of them, answer.

use std::io;
use std::os::fd::AsFd;
use std::sync::Arc;
use std::time::{Duration, Instant};

use event_channel::AdaptivePoll;
use hypervisor::{Channel, Contiguous, InflightRegion};
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use ring_abi::blkif::{Request, Response, Status};
use ring_abi::ring::Protocol;

use crate::check::Limits;
use crate::device::{End, Orders, Recovery, Setup, control_fd};
use crate::engine::{DiskInfo, Done, Engine, Io, Op};
use crate::pages::{Pages, Settled};
use crate::queue::{JobId, Queue, Task};
use crate::stats::Stats;

/// Wake-ups in a row without any work after which the frontend's events are slowed (XSA-332, XSA-391).
const STORM: u32 = 32;
/// Milliseconds for which a storm's events are not listened to.
const CALM_MS: u8 = 2;
/// Looks at the ring between two looks at the clock while spinning.
const SPINS: u32 = 64;

/// How often the disk's size is looked at while requests come in: on every one, Linux's backend does.
const LOOK: Duration = Duration::from_secs(1);

/// When a job was taken, and how much it moves.
#[derive(Clone, Copy)]
struct Started {
    at: Instant,
    bytes: usize,
}

/// Everything that one ring's thread owns.
pub(crate) struct Service<P: Protocol<Request = Request, Response = Response>> {
    // In this order they are dropped: the engine lets go of the guest's pages, then the ring goes.
    engine: Box<dyn Engine>,
    done: Vec<Done>,
    stalled: Option<Box<Io>>,
    /// Operations that are over, to be used again: a request costs no allocation.
    #[allow(clippy::vec_box)] // What is kept is the boxes.
    blank: Vec<Box<Io>>,
    pages: Pages,
    /// Tasks to be started once more, the other way.
    again: Vec<Task>,
    queue: Queue<P, Contiguous, InflightRegion>,
    /// What the disk was when it was last looked at, and when that was.
    info: DiskInfo,
    looked: Instant,
    /// An earlier process may have left an answer that the frontend was not woken for.
    resumed: bool,
    channel: Box<dyn Channel>,
    started: Box<[Started]>,
    /// Operations that the engine has.
    in_engine: usize,
    /// Wake-ups in a row that found nothing to do.
    spurious: u32,
    spin: AdaptivePoll,
    stats: Arc<Stats>,
    setup: Setup,
}

impl<P: Protocol<Request = Request, Response = Response>> Service<P> {
    pub(crate) fn new(mut setup: Setup, ring: Contiguous, channel: Box<dyn Channel>) -> Result<Self, End> {
        let info = setup.disk.info().map_err(End::Engine)?;
        let (limits, recovery) = (limits(&info), std::mem::take(&mut setup.recovery));
        let resumed = matches!(recovery, Recovery::Resume(_));
        let queue = match recovery {
            Recovery::None => Queue::attach(ring, limits)?,
            Recovery::Record(kept) => Queue::attach_recording(ring, limits, kept)?,
            Recovery::Resume(kept) => Queue::resume(ring, limits, kept)?,
        };
        if resumed {
            tracing::info!(peer = %setup.peer, in_flight = queue.in_flight(), "going on where it was left");
        }
        let depth = queue.size();
        let mut engine = setup.disk.engine(depth).map_err(End::Engine)?;
        let pages = Pages::new(&setup, depth, &mut *engine);
        let started = vec![Started { at: Instant::now(), bytes: 0 }; depth].into();
        let stats = setup.stats.clone();
        let (done, stalled, spin) = (Vec::with_capacity(depth), None, AdaptivePoll::default());
        let blank = Vec::with_capacity(depth);
        Ok(Self {
            engine,
            done,
            stalled,
            blank,
            pages,
            again: Vec::new(),
            queue,
            info,
            looked: Instant::now(),
            resumed,
            channel,
            started,
            in_engine: 0,
            spurious: 0,
            spin,
            stats,
            setup,
        })
    }

    /// Serves until told to stop or until the device can go on no more; in both cases nothing is left in the
    /// engine.
    pub(crate) fn run(mut self, orders: &Orders) -> Result<(), End> {
        let outcome = self.serve(orders);
        let drained = self.drain();
        if outcome.is_ok() {
            self.publish()?;
        }
        outcome.and(drained)
    }

    fn serve(&mut self, orders: &Orders) -> Result<(), End> {
        if self.resumed {
            self.channel.notify().map_err(gone)?;
        }
        loop {
            if orders.pending() {
                if orders.stop() {
                    return Ok(());
                }
                if orders.take_resized() {
                    self.queue.set_limits(limits(&self.setup.disk.info().map_err(End::Engine)?));
                }
            }
            if self.round()? {
                self.spurious = 0;
            } else if !self.spin(orders)? && !self.queue.arm()? {
                self.sleep(orders)?;
            }
        }
    }

    /// Takes, submits, answers; `true` if there was anything to do.
    fn round(&mut self) -> Result<bool, End> {
        let taken = self.take()?;
        let finished = self.finish()?;
        self.publish()?;
        Ok(taken || finished)
    }

    fn take(&mut self) -> Result<bool, End> {
        if let Some(io) = self.stalled.take() {
            self.submit(io);
        }
        let mut now = None;
        for _ in 0..self.setup.tuning.batch {
            if self.stalled.is_some() {
                break;
            }
            let Some(task) = self.queue.poll()? else { break };
            // One look at the clock a batch is near enough, and a look costs as much as a request.
            let at = *now.get_or_insert_with(Instant::now);
            self.start(&task, at);
        }
        if let Some(now) = now.filter(|now| now.saturating_duration_since(self.looked) >= LOOK) {
            self.look(now);
        }
        Ok(now.is_some())
    }

    /// Looks at the disk's size; the control thread tells the frontend of another one, and us.
    #[cold]
    fn look(&mut self, now: Instant) {
        self.looked = now;
        match self.setup.disk.info() {
            Ok(info) if info != self.info => {
                self.info = info;
                (self.setup.changed)();
            }
            Ok(_) => {}
            Err(error) => tracing::debug!(%error, "looking at the disk's size"),
        }
    }

    fn start(&mut self, task: &Task, at: Instant) {
        let mut io = self.blank.pop().unwrap_or_else(Io::blank);
        let ready = match task.op {
            Op::Flush => {
                io.set_flush(task.job.0.into());
                true
            }
            Op::Read | Op::Write => self.pages.prepare(task, &mut io),
        };
        self.started[task.job.0 as usize] = Started { at, bytes: io.len() };
        if ready {
            self.submit(io);
        } else {
            count(&self.stats, task.op).add(0, false);
            self.queue.complete(task.job, Status::ERROR);
            self.blank.push(io);
        }
    }

    #[inline]
    fn submit(&mut self, io: Box<Io>) {
        match self.engine.submit(io) {
            Ok(()) => self.in_engine += 1,
            Err(io) => self.stalled = Some(io),
        }
    }

    fn finish(&mut self) -> Result<bool, End> {
        if self.in_engine == 0 {
            return Ok(false);
        }
        self.engine.poll(&mut self.done).map_err(End::Engine)?;
        if self.done.is_empty() {
            return Ok(false);
        }
        let now = Instant::now();
        for Done { mut io, result } in self.done.drain(..) {
            self.in_engine -= 1;
            let (job, op) = (JobId(io.tag as u32), io.op);
            let result = match self.pages.settle(&mut io, result) {
                Settled::Over(result) => result,
                Settled::Again(task) => {
                    self.blank.push(io);
                    self.again.push(task);
                    continue;
                }
            };
            // Unmapped before the answer gives the pages back to the frontend.
            io.clear();
            self.blank.push(io);
            let started = self.started[job.0 as usize];
            self.stats.took(now.saturating_duration_since(started.at));
            count(&self.stats, op).add(started.bytes, result.is_ok());
            self.queue.complete(job, status(op, &result));
        }
        while let Some(task) = self.again.pop() {
            self.start(&task, now);
        }
        self.stats.set_depth(self.queue.in_flight());
        self.stats.set_refused(self.queue.refused());
        Ok(true)
    }

    fn publish(&mut self) -> Result<(), End> {
        if self.queue.commit().wanted() {
            self.stats.notified();
            self.channel.notify().map_err(gone)?;
        }
        Ok(())
    }

    /// Looks again for a short while; `true` if there is something to do.
    fn spin(&mut self, orders: &Orders) -> Result<bool, End> {
        if self.setup.tuning.spin.is_zero() || !self.spin.should_poll() {
            return Ok(false);
        }
        let start = Instant::now();
        while start.elapsed() < self.setup.tuning.spin {
            for _ in 0..SPINS {
                if orders.pending() || self.round()? {
                    self.spin.hit();
                    return Ok(true);
                }
                std::hint::spin_loop();
            }
        }
        self.spin.miss();
        Ok(false)
    }

    fn sleep(&mut self, orders: &Orders) -> Result<(), End> {
        let storm = self.spurious >= STORM;
        let timeout = if storm { PollTimeout::from(CALM_MS) } else { PollTimeout::NONE };
        let mut fds = [self.engine.fd(), control_fd(orders), self.channel.as_fd()]
            .map(|fd| PollFd::new(fd, PollFlags::POLLIN));
        let heard = if storm { &mut fds[..2] } else { &mut fds[..] };
        match poll(heard, timeout) {
            Ok(_) | Err(Errno::EINTR) => {}
            Err(e) => return Err(End::Wait(e.into())),
        }
        let engine = fds[0].any().unwrap_or(false);
        self.stats.woken();
        self.spurious = if engine { 0 } else { self.spurious.saturating_add(1) };
        self.channel.take().map(|_| ()).map_err(gone)
    }

    /// Waits for the engine to hand back everything: pages are unmapped only then.
    fn drain(&mut self) -> Result<(), End> {
        self.stalled = None;
        while self.in_engine > 0 {
            if self.finish()? {
                continue;
            }
            let mut fds = [PollFd::new(self.engine.fd(), PollFlags::POLLIN)];
            match poll(&mut fds, PollTimeout::NONE) {
                Ok(_) | Err(Errno::EINTR) => {}
                Err(e) => return Err(End::Wait(e.into())),
            }
        }
        Ok(())
    }
}

fn gone(error: hypervisor::Error) -> End {
    match error {
        hypervisor::Error::Closed => End::Gone,
        other => End::Channel(other),
    }
}

fn limits(info: &DiskInfo) -> Limits {
    let DiskInfo { sectors, sector_size, read_only, flush, .. } = *info;
    Limits { sectors, sector_size, read_only, flush }
}

fn count(stats: &Stats, op: Op) -> &crate::stats::Count {
    match op {
        Op::Read => &stats.read,
        Op::Write => &stats.write,
        Op::Flush => &stats.flush,
    }
}

fn status(op: Op, result: &io::Result<()>) -> Status {
    match result {
        Ok(()) => Status::OKAY,
        Err(error) => {
            tracing::debug!(?op, %error, "the disk failed a request");
            Status::ERROR
        }
    }
}
