// Not a core: does I/O or calls a hypervisor.

//! The loop of one ring: takes requests and submits operations, polls the engine and publishes responses.

use std::io;
use std::os::fd::AsFd;
use std::sync::Arc;
use std::time::{Duration, Instant};

use event_channel::WaitChannel;
use event_loop::AdaptivePoll;
use grant_table::Contiguous;
use inflight::InflightRegion;
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use ring_abi::blkif::{Request, Response, Status};
use ring_abi::ring::Protocol;

use crate::check::Limits;
use crate::commands::Commands;
use crate::config::{Recovery, RingConfig};
use crate::disk_request::{DiskRequest, Tag};
use crate::engine::{Completion, DiskInfo, Engine, IoRequest, Operation};
use crate::error::ExitReason;
use crate::guest_data::{GuestData, Outcome};
use crate::queue::Queue;
use crate::stats::{OpCounters, Stats};

/// Consecutive wake-ups without any work after which the frontend's events are throttled (XSA-332, XSA-391).
const SPURIOUS_MAX: u32 = 32;
/// Milliseconds for which a throttled event channel is not polled.
const THROTTLE_MS: u8 = 2;
/// Polls of the ring between two reads of the clock while busy polling.
const POLLS_PER_CLOCK_READ: u32 = 64;

/// How often the disk's size is read while requests come in; Linux's backend reads it for every request.
const REFRESH_INTERVAL: Duration = Duration::from_secs(1);

/// When a request was taken, and its length in bytes.
#[derive(Clone, Copy)]
struct Started {
    at: Instant,
    bytes: usize,
}

/// Everything that one ring's thread owns.
pub(crate) struct Service<P: Protocol<Request = Request, Response = Response>> {
    // Fields are dropped in this order: the engine lets go of the guest's pages before the ring is unmapped.
    engine: Box<dyn Engine>,
    completions: Vec<Completion>,
    /// An operation that the engine was too full to take.
    stalled: Option<Box<IoRequest>>,
    /// Completed operations, to be used again: a request costs no allocation.
    #[allow(clippy::vec_box)] // The boxes are what is reused.
    free_ios: Vec<Box<IoRequest>>,
    guest_data: GuestData,
    /// Requests to be started once more, with their data copied.
    retries: Vec<DiskRequest>,
    queue: Queue<P, Contiguous, InflightRegion>,
    /// The disk's properties when last read, and when that was.
    info: DiskInfo,
    refreshed: Instant,
    /// An earlier process may have published a response without notifying the frontend.
    resumed: bool,
    channel: Box<dyn WaitChannel>,
    /// By tag.
    started: Box<[Started]>,
    /// Operations that the engine has.
    in_engine: usize,
    /// Consecutive wake-ups without any work.
    spurious: u32,
    adaptive_poll: AdaptivePoll,
    stats: Arc<Stats>,
    config: RingConfig,
}

impl<P: Protocol<Request = Request, Response = Response>> Service<P> {
    pub(crate) fn new(
        mut config: RingConfig,
        ring: Contiguous,
        channel: Box<dyn WaitChannel>,
    ) -> Result<Self, ExitReason> {
        let info = config.disk.info().map_err(ExitReason::Engine)?;
        let limits = limits(&info);
        let recovery = std::mem::take(&mut config.recovery);
        let resumed = matches!(recovery, Recovery::Resume(_));
        let queue = match recovery {
            Recovery::None => Queue::attach(ring, limits)?,
            Recovery::Record(region) => Queue::attach_recording(ring, limits, region)?,
            Recovery::Resume(region) => Queue::resume(ring, limits, region)?,
        };
        if resumed {
            tracing::info!(in_flight = queue.in_flight(), "resumed");
        }
        let depth = queue.size();
        let mut engine = config.disk.engine(depth).map_err(ExitReason::Engine)?;
        let guest_data = GuestData::new(&config, depth, &mut *engine);
        Ok(Self {
            engine,
            completions: Vec::with_capacity(depth),
            stalled: None,
            free_ios: Vec::with_capacity(depth),
            guest_data,
            retries: Vec::new(),
            queue,
            info,
            refreshed: Instant::now(),
            resumed,
            channel,
            started: vec![Started { at: Instant::now(), bytes: 0 }; depth].into(),
            in_engine: 0,
            spurious: 0,
            adaptive_poll: AdaptivePoll::default(),
            stats: config.stats.clone(),
            config,
        })
    }

    /// Serves the ring until it is told to stop or fails. In both cases the engine has handed back all operations.
    pub(crate) fn run(mut self, commands: &Commands) -> Result<(), ExitReason> {
        let outcome = self.serve(commands);
        let drained = self.drain();
        if outcome.is_ok() {
            self.publish_responses()?;
        }
        outcome.and(drained)
    }

    fn serve(&mut self, commands: &Commands) -> Result<(), ExitReason> {
        if self.resumed {
            self.channel.notify().map_err(channel_error)?;
        }
        loop {
            if commands.pending() {
                if commands.is_stopped() {
                    return Ok(());
                }
                if commands.take_resized() {
                    let info = self.config.disk.info().map_err(ExitReason::Engine)?;
                    self.queue.set_limits(limits(&info));
                }
            }
            if self.poll_once()? {
                self.spurious = 0;
            } else if !self.busy_poll(commands)? && !self.queue.arm()? {
                self.sleep(commands)?;
            }
        }
    }

    /// Takes requests, completes operations and publishes responses; `true` if there was anything to do.
    fn poll_once(&mut self) -> Result<bool, ExitReason> {
        let taken = self.take_requests()?;
        let completed = self.complete_requests()?;
        self.publish_responses()?;
        Ok(taken || completed)
    }

    fn take_requests(&mut self) -> Result<bool, ExitReason> {
        if let Some(io) = self.stalled.take() {
            self.submit(io);
        }
        let mut now = None;
        for _ in 0..self.config.tuning.batch {
            if self.stalled.is_some() {
                break;
            }
            let Some(request) = self.queue.poll()? else { break };
            // The clock is read once a batch: reading it costs as much as a request.
            let at = *now.get_or_insert_with(Instant::now);
            self.start(&request, at);
        }
        if let Some(now) = now.filter(|now| now.saturating_duration_since(self.refreshed) >= REFRESH_INTERVAL)
        {
            self.refresh(now);
        }
        Ok(now.is_some())
    }

    /// Reads the disk's size. If it changed, the control thread advertises it to the frontend and sends a command.
    #[cold]
    fn refresh(&mut self, now: Instant) {
        self.refreshed = now;
        match self.config.disk.info() {
            Ok(info) if info != self.info => {
                self.info = info;
                (self.config.on_resize)();
            }
            Ok(_) => {}
            Err(error) => tracing::debug!(%error, "failed to read the disk's size"),
        }
    }

    fn start(&mut self, request: &DiskRequest, at: Instant) {
        let mut io = self.free_ios.pop().unwrap_or_else(IoRequest::empty);
        let ready = match request.operation {
            Operation::Flush => {
                io.set_flush(request.tag.0.into());
                true
            }
            Operation::Read | Operation::Write => self.guest_data.start(request, &mut io),
        };
        self.started[request.tag.0 as usize] = Started { at, bytes: io.len() };
        if ready {
            self.submit(io);
        } else {
            counters(&self.stats, request.operation).add(0, false);
            self.queue.complete(request.tag, Status::ERROR);
            self.free_ios.push(io);
        }
    }

    #[inline]
    fn submit(&mut self, io: Box<IoRequest>) {
        match self.engine.submit(io) {
            Ok(()) => self.in_engine += 1,
            Err(io) => self.stalled = Some(io),
        }
    }

    fn complete_requests(&mut self) -> Result<bool, ExitReason> {
        if self.in_engine == 0 {
            return Ok(false);
        }
        self.engine.poll(&mut self.completions).map_err(ExitReason::Engine)?;
        if self.completions.is_empty() {
            return Ok(false);
        }
        let now = Instant::now();
        for Completion { request: mut io, result } in self.completions.drain(..) {
            self.in_engine -= 1;
            let tag = Tag(io.tag as u32);
            let operation = io.operation;
            let result = match self.guest_data.complete(&mut io, result) {
                Outcome::Done(result) => result,
                Outcome::Retry(request) => {
                    self.free_ios.push(io);
                    self.retries.push(request);
                    continue;
                }
            };
            // Unmapped before the response gives the pages back to the frontend.
            io.clear();
            self.free_ios.push(io);
            let started = self.started[tag.0 as usize];
            self.stats.record_latency(now.saturating_duration_since(started.at));
            counters(&self.stats, operation).add(started.bytes, result.is_ok());
            self.queue.complete(tag, status(operation, &result));
        }
        while let Some(request) = self.retries.pop() {
            self.start(&request, now);
        }
        self.stats.set_depth(self.queue.in_flight());
        self.stats.set_refused(self.queue.refused());
        Ok(true)
    }

    fn publish_responses(&mut self) -> Result<(), ExitReason> {
        if self.queue.commit().wanted() {
            self.stats.count_notify();
            self.channel.notify().map_err(channel_error)?;
        }
        Ok(())
    }

    /// Polls for a short while before sleeping; `true` if there is something to do.
    fn busy_poll(&mut self, commands: &Commands) -> Result<bool, ExitReason> {
        if self.config.tuning.busy_poll.is_zero() || !self.adaptive_poll.should_poll() {
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

    fn sleep(&mut self, commands: &Commands) -> Result<(), ExitReason> {
        let throttled = self.spurious >= SPURIOUS_MAX;
        let timeout = if throttled { PollTimeout::from(THROTTLE_MS) } else { PollTimeout::NONE };
        let mut fds = [self.engine.fd(), commands.event.as_fd(), self.channel.as_fd()]
            .map(|fd| PollFd::new(fd, PollFlags::POLLIN));
        let polled = if throttled { &mut fds[..2] } else { &mut fds[..] };
        match poll(polled, timeout) {
            Ok(_) | Err(Errno::EINTR) => {}
            Err(e) => return Err(ExitReason::Wait(e.into())),
        }
        let engine = fds[0].any().unwrap_or(false);
        self.stats.count_wakeup();
        self.spurious = if engine { 0 } else { self.spurious.saturating_add(1) };
        self.channel.take().map(|_| ()).map_err(channel_error)
    }

    /// Waits for the engine to hand back all operations: only then may pages be unmapped.
    fn drain(&mut self) -> Result<(), ExitReason> {
        self.stalled = None;
        while self.in_engine > 0 {
            if self.complete_requests()? {
                continue;
            }
            let mut fds = [PollFd::new(self.engine.fd(), PollFlags::POLLIN)];
            match poll(&mut fds, PollTimeout::NONE) {
                Ok(_) | Err(Errno::EINTR) => {}
                Err(e) => return Err(ExitReason::Wait(e.into())),
            }
        }
        Ok(())
    }
}

fn channel_error(error: event_channel::Error) -> ExitReason {
    match error {
        event_channel::Error::Closed => ExitReason::PeerGone,
        other => ExitReason::Channel(other),
    }
}

fn limits(info: &DiskInfo) -> Limits {
    let DiskInfo { sectors, sector_size, read_only, flush, .. } = *info;
    Limits { sectors, sector_size, read_only, flush }
}

fn counters(stats: &Stats, operation: Operation) -> &OpCounters {
    match operation {
        Operation::Read => &stats.read,
        Operation::Write => &stats.write,
        Operation::Flush => &stats.flush,
    }
}

fn status(operation: Operation, result: &io::Result<()>) -> Status {
    match result {
        Ok(()) => Status::OKAY,
        Err(error) => {
            tracing::debug!(?operation, %error, "failed request");
            Status::ERROR
        }
    }
}
