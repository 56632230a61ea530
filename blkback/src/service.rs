// Not a core: does I/O or calls a hypervisor.

//! The loop of one ring: takes requests and submits operations, polls the engine and publishes responses.

use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant};

use event_channel::{Notifier, WaitChannel};
use event_loop::{AdaptivePoll, EventSet};
use grant_table::Contiguous;
use inflight::InflightRegion;
use ring_abi::blkif::{Request, Response, Status};
use ring_abi::ring::{Notify, Protocol};

use crate::check::Limits;
use crate::commands::Commands;
use crate::config::{Recovery, RingConfig};
use crate::disk_request::{DiskRequest, Tag};
use crate::engine::{Completion, DiskInfo, Engine, IoRequest, Operation};
use crate::error::{ExitReason, StartError};
use crate::guest_data::{GuestData, Outcome};
use crate::queue::Queue;
use crate::stats::{ErrorKind, Stats, Tally};

/// The tokens of the descriptors that the loop waits for.
const ENGINE: u64 = 0;
const COMMANDS: u64 = 1;
const CHANNEL: u64 = 2;

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
    notifier: Notifier<Box<dyn WaitChannel>>,
    event_set: EventSet,
    /// By tag.
    started: Box<[Started]>,
    /// Operations that the engine has.
    in_engine: usize,
    adaptive_poll: AdaptivePoll,
    stats: Arc<Stats>,
    config: RingConfig,
}

impl<P: Protocol<Request = Request, Response = Response>> Service<P> {
    pub(crate) fn new(
        mut config: RingConfig,
        ring: Contiguous,
        channel: Box<dyn WaitChannel>,
    ) -> Result<Self, StartError> {
        let info = config.disk.info().map_err(StartError::Engine)?;
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
        let mut engine = config.disk.engine(depth).map_err(StartError::Engine)?;
        let guest_data = GuestData::new(&config, depth, &mut *engine);
        let mut notifier = Notifier::new(channel);
        notifier.count_in(config.stats.events.clone());
        let event_set = EventSet::new()?;
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
            notifier,
            event_set,
            started: vec![Started { at: Instant::now(), bytes: 0 }; depth].into(),
            in_engine: 0,
            adaptive_poll: AdaptivePoll::default(),
            stats: config.stats.clone(),
            config,
        })
    }

    /// Serves the ring until it is told to stop or fails. In both cases the engine has handed back all operations.
    pub(crate) fn run(mut self, commands: &Commands) -> Result<(), ExitReason> {
        let outcome = self.serve(commands);
        let drained = self.drain(commands);
        self.stats.set_in_flight(0);
        if outcome.is_ok() {
            self.publish_responses()?;
        }
        outcome.and(drained)
    }

    fn serve(&mut self, commands: &Commands) -> Result<(), ExitReason> {
        self.register(commands).map_err(ExitReason::Wait)?;
        if self.resumed {
            self.notifier.want(Notify::Yes);
            self.notifier.flush().map_err(channel_error)?;
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
            if !self.poll_once()? && !self.busy_poll(commands)? && !self.queue.arm()? {
                self.sleep()?;
            }
        }
    }

    fn register(&self, commands: &Commands) -> io::Result<()> {
        self.event_set.add(self.engine.fd(), ENGINE)?;
        self.event_set.add(&commands.event, COMMANDS)?;
        self.notifier.register(&self.event_set, CHANNEL)
    }

    /// Takes requests, completes operations and publishes responses; `true` if there was anything to do.
    fn poll_once(&mut self) -> Result<bool, ExitReason> {
        let taken = self.take_requests()?;
        let completed = self.complete_requests()?;
        self.publish_responses()?;
        self.notifier.worked(taken || completed);
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
        if self.queue.refused().any() {
            self.stats.refused(self.queue.refused());
        }
        if now.is_some() {
            self.stats.set_in_flight(self.queue.in_flight());
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
            self.stats.failed(request.operation, ErrorKind::Grant);
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
        let mut tally = Tally::new(&self.stats, now);
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
            let status = match result {
                Ok(()) => {
                    tally.done(operation, started.bytes, started.at);
                    Status::OKAY
                }
                Err((kind, error)) => failed(&self.stats, operation, kind, &error),
            };
            self.queue.complete(tag, status);
        }
        drop(tally);
        while let Some(request) = self.retries.pop() {
            // Its time counts from when it was taken from the ring.
            let taken_at = self.started[request.tag.0 as usize].at;
            self.start(&request, taken_at);
        }
        self.stats.set_in_flight(self.queue.in_flight());
        Ok(true)
    }

    fn publish_responses(&mut self) -> Result<(), ExitReason> {
        if self.queue.has_uncommitted() {
            self.notifier.want(self.queue.commit());
            self.notifier.flush().map_err(channel_error)?;
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

    fn sleep(&mut self) -> Result<(), ExitReason> {
        // Against a frontend that notifies without work (XSA-332).
        if let Some(pause) = self.notifier.limit_events(&self.event_set).map_err(channel_error)? {
            tracing::debug!(?pause, "masking events: the frontend notifies without work");
        }
        let ready = self.event_set.wait(None).map_err(ExitReason::Wait)?;
        self.stats.count_wakeup();
        if ready.contains(CHANNEL) || ready.contains(EventSet::TIMER) {
            self.notifier.take_events(&self.event_set).map_err(channel_error)?;
        }
        Ok(())
    }

    /// Waits for the engine to hand back all operations: only then may pages be unmapped.
    fn drain(&mut self, commands: &Commands) -> Result<(), ExitReason> {
        self.stalled = None;
        self.notifier.unregister(&self.event_set);
        self.event_set.remove(&commands.event);
        while self.in_engine > 0 {
            if self.complete_requests()? {
                continue;
            }
            self.event_set.wait(None).map_err(ExitReason::Wait)?;
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

#[cold]
fn failed(stats: &Stats, operation: Operation, kind: ErrorKind, error: &io::Error) -> Status {
    tracing::debug!(?operation, %error, "failed request");
    stats.failed(operation, kind);
    Status::ERROR
}

fn limits(info: &DiskInfo) -> Limits {
    let DiskInfo { sectors, sector_size, read_only, flush, .. } = *info;
    Limits { sectors, sector_size, read_only, flush }
}
