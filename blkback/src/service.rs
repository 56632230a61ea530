//! One ring's loop: take, map, submit; poll, unmap, answer.

use std::io;
use std::os::fd::AsFd;
use std::sync::Arc;
use std::time::Instant;

use arrayvec::ArrayVec;
use event_channel::Spin;
use hypervisor::{Access, Channel, Contiguous, GrantRef, Kept};
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use ring_abi::blkif::{MAX_SEGMENTS, Request, Response, SECTOR, Status};
use ring_abi::ring::Protocol;

use crate::check::Limits;
use crate::device::{End, Keeping, Orders, Setup, control_fd};
use crate::engine::{DiskInfo, Done, Engine, Io, Op, Part};
use crate::queue::{JobId, Queue, Task};
use crate::stats::Stats;

/// Requests taken before answers are looked for: few enough that the front end works on the first answers while we
/// work on the next requests, many enough that the shared indexes change hands seldom.
const BATCH: usize = 8;
/// Wake-ups in a row without any work after which the front end's events are slowed (XSA-332, XSA-391).
const STORM: u32 = 32;
/// Milliseconds for which a storm's events are not listened to.
const CALM_MS: u8 = 2;
/// Looks at the ring between two looks at the clock while spinning.
const SPINS: u32 = 64;

/// When a job was taken, and how much it moves.
#[derive(Clone, Copy)]
struct Started {
    at: Instant,
    octets: usize,
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
    queue: Queue<P, Contiguous, Kept>,
    /// An earlier process may have left an answer that the front end was not woken for.
    resumed: bool,
    channel: Box<dyn Channel>,
    started: Box<[Started]>,
    /// Operations that the engine has.
    in_engine: usize,
    /// Wake-ups in a row that found nothing to do.
    spurious: u32,
    spin: Spin,
    stats: Arc<Stats>,
    setup: Setup,
}

impl<P: Protocol<Request = Request, Response = Response>> Service<P> {
    pub(crate) fn new(mut setup: Setup, ring: Contiguous, channel: Box<dyn Channel>) -> Result<Self, End> {
        let info = setup.disk.info().map_err(End::Engine)?;
        let (limits, keeping) = (limits(&info), std::mem::take(&mut setup.keeping));
        let resumed = matches!(keeping, Keeping::Resume(_));
        let queue = match keeping {
            Keeping::Nothing => Queue::attach(ring, limits)?,
            Keeping::Start(kept) => Queue::attach_keeping(ring, limits, kept)?,
            Keeping::Resume(kept) => Queue::resume(ring, limits, kept)?,
        };
        if resumed {
            tracing::info!(peer = %setup.peer, under_way = queue.under_way(), "going on where it was left");
        }
        let depth = queue.size();
        let engine = setup.disk.engine(depth).map_err(End::Engine)?;
        let started = vec![Started { at: Instant::now(), octets: 0 }; depth].into();
        let stats = setup.stats.clone();
        let (done, stalled, spin) = (Vec::with_capacity(depth), None, Spin::default());
        let blank = Vec::with_capacity(depth);
        Ok(Self {
            engine,
            done,
            stalled,
            blank,
            queue,
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
        for _ in 0..BATCH {
            if self.stalled.is_some() {
                break;
            }
            let Some(task) = self.queue.poll()? else { break };
            // One look at the clock a batch is near enough, and a look costs as much as a request.
            let at = *now.get_or_insert_with(Instant::now);
            self.start(&task, at);
        }
        Ok(now.is_some())
    }

    fn start(&mut self, task: &Task, at: Instant) {
        let mut io = self.blank.pop().unwrap_or_else(Io::blank);
        let ready = match task.op {
            Op::Flush => {
                io.set_flush(task.job.0.into());
                true
            }
            Op::Read | Op::Write => self.map(task, &mut io),
        };
        self.started[task.job.0 as usize] = Started { at, octets: io.len() };
        if ready {
            self.submit(io);
        } else {
            count(&self.stats, task.op).add(0, false);
            self.queue.complete(task.job, Status::ERROR);
            self.blank.push(io);
        }
    }

    /// Maps a task's pages; `false` if a grant is refused, which is this request's error alone.
    #[inline]
    fn map(&self, task: &Task, io: &mut Io) -> bool {
        let refs: ArrayVec<GrantRef, MAX_SEGMENTS> = task.segments.iter().map(|s| s.gref).collect();
        // Reading the disk writes the guest's pages.
        let access = if task.op == Op::Read { Access::ReadWrite } else { Access::ReadOnly };
        let mapping = match self.setup.hv.map(self.setup.peer, &refs, access) {
            Ok(mapping) => mapping,
            Err(error) => {
                tracing::debug!(peer = %self.setup.peer, %error, "a request's pages cannot be mapped");
                return false;
            }
        };
        let parts = (0..).zip(&task.segments).map(|(page, segment)| {
            let sectors = u16::from(segment.last_sect - segment.first_sect) + 1;
            Part { page, offset: u16::from(segment.first_sect) * SECTOR as u16, len: sectors * SECTOR as u16 }
        });
        io.set_mapped(task.job.0.into(), task.op, task.sector, mapping, parts)
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
            // Unmapped before the answer gives the pages back to the front end.
            io.clear();
            self.blank.push(io);
            let started = self.started[job.0 as usize];
            self.stats.took(now.saturating_duration_since(started.at));
            count(&self.stats, op).add(started.octets, result.is_ok());
            self.queue.complete(job, status(op, &result));
        }
        self.stats.set_depth(self.queue.under_way());
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
        if self.setup.tuning.spin.is_zero() || !self.spin.worth() {
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
        self.spin.missed();
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
