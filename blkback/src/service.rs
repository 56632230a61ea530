// Not a core: does I/O or calls a hypervisor.

//! The loop of one ring: takes requests and submits operations, polls the engine and publishes responses.

mod idle;

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
use crate::engine::{Completion, Engine, IoRequest, Operation};
use crate::error::{ExitReason, StartError};
use crate::error_log::ErrorLog;
use crate::guest_data::{Finished, GuestData};
use crate::medium::Gate;
use crate::queue::Queue;
use crate::request::Tag;
use crate::segment_pages::SegmentPages;
use crate::stats::{ErrorKind, Stats, Tally};
use crate::throttle::Lanes;

/// The tokens of the descriptors that the loop waits for.
const ENGINE: u64 = 0;
const COMMANDS: u64 = 1;
const CHANNEL: u64 = 2;
const DISCARDS: u64 = 3;
const FLUSHES: u64 = 4;

/// How often the disk's size is read while requests come in; Linux's backend reads it for every request.
const REFRESH_INTERVAL: Duration = Duration::from_secs(1);

/// How often persistent grants are given back that were not used for as long; Linux's backend has 60 s
/// (`persistent_grant_unused_seconds`).
const UNUSED_INTERVAL: Duration = Duration::from_secs(60);

/// What passes from one stage to the next; empty between two polls, and kept for its memory.
#[derive(Default)]
struct Batch {
    /// Indirect requests whose segments are to be fetched.
    unfetched: Vec<Tag>,
    /// Requests to be started.
    tags: Vec<Tag>,
    /// Operations for the engine.
    ready: Vec<IoRequest>,
    /// Requests that fail without having been carried out.
    failed: Vec<Tag>,
    /// Operations that are complete.
    finished: Vec<Finished>,
}

/// Everything that one ring's thread owns.
pub(crate) struct Service<P: Protocol<Request = Request, Response = Response>> {
    // Fields are dropped in this order: the engine lets go of the guest's pages before they are unmapped.
    engine: Box<dyn Engine>,
    gate: Gate,
    completions: Vec<Completion>,
    batch: Batch,
    guest_data: GuestData,
    segment_pages: SegmentPages,
    /// Indirect requests have used memory since the ring was last without requests for a while.
    has_spare: bool,
    queue: Queue<P, Contiguous, InflightRegion>,
    /// Requests that were taken and wait for their time, where the disk has limits.
    lanes: Lanes,
    /// When the disk's properties were last read.
    refreshed: Instant,
    /// When persistent grants were last given back that nobody had used.
    given_back: Instant,
    /// An earlier process may have published a response without notifying the frontend.
    resumed: bool,
    notifier: Notifier<Box<dyn WaitChannel>>,
    event_set: EventSet,
    adaptive_poll: AdaptivePoll,
    stats: Arc<Stats>,
    error_log: ErrorLog,
    config: RingConfig,
}

impl<P: Protocol<Request = Request, Response = Response>> Service<P> {
    pub(crate) fn new(
        mut config: RingConfig,
        ring: Contiguous,
        channel: Box<dyn WaitChannel>,
    ) -> Result<Self, StartError> {
        let limits = Limits::of(&config.info, config.indirect_segments);
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
        let gate = std::mem::take(&mut config.gate);
        Ok(Self {
            engine,
            gate,
            completions: Vec::with_capacity(depth),
            guest_data,
            segment_pages: SegmentPages::new(config.grants.clone(), config.peer),
            has_spare: false,
            batch: Batch::default(),
            queue,
            lanes: Lanes::new(config.throttle.take()),
            refreshed: Instant::now(),
            given_back: Instant::now(),
            resumed,
            notifier,
            event_set,
            adaptive_poll: AdaptivePoll::default(),
            stats: config.stats.clone(),
            error_log: ErrorLog::default(),
            config,
        })
    }

    /// Serves the ring until it is told to stop, when all requests that it has taken are answered, or fails. The engine has
    /// then handed back or dropped all operations, unless it has failed itself: it is dropped before the pages are unmapped.
    pub(crate) fn run(mut self, commands: &Commands) -> Result<(), ExitReason> {
        let outcome = self.serve(commands);
        let drained = self.drain(commands, outcome.is_ok());
        self.stats.set_in_flight(0);
        // For the next ring of the disk.
        self.refresh(Instant::now());
        if outcome.is_ok() {
            self.publish_responses()?;
        }
        outcome.and(drained)
    }

    fn serve(&mut self, commands: &Commands) -> Result<(), ExitReason> {
        self.register(commands).map_err(ExitReason::Wait)?;
        if self.resumed {
            self.notifier.want(Notify::Yes);
            self.notifier.flush()?;
        }
        loop {
            if commands.pending() {
                if commands.is_stopped() {
                    return Ok(());
                }
                if commands.take_look() {
                    self.refresh(Instant::now());
                }
                if let Some(info) = commands.take_advertised() {
                    self.queue.set_limits(Limits::of(&info, self.config.indirect_segments));
                }
                if let Some(throttle) = commands.take_throttle() {
                    self.lanes.set_throttle(throttle);
                }
            }
            if !self.poll_once()?
                && !self.busy_poll(commands)?
                && (self.guest_data.has_waiting() || !self.queue.arm()?)
            {
                self.sleep(commands)?;
            }
        }
    }

    fn register(&self, commands: &Commands) -> io::Result<()> {
        self.event_set.add(self.engine.fd(), ENGINE)?;
        self.engine.discard_fd().map_or(Ok(()), |fd| self.event_set.add(fd, DISCARDS))?;
        self.engine.flush_fd().map_or(Ok(()), |fd| self.event_set.add(fd, FLUSHES))?;
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
        // What is complete next makes room for them.
        if self.guest_data.has_waiting() {
            return Ok(false);
        }
        self.queue.prefetch(self.config.tuning.batch);
        while self.batch.tags.len() < self.config.tuning.batch {
            let Some(tag) = self.queue.poll()? else { break };
            self.batch.tags.push(tag);
        }
        let any_fetched = self.queue.has_unfetched() && self.fetch();
        if self.queue.refused().any() {
            self.stats.refused(self.queue.refused());
        }
        if self.batch.tags.is_empty() && !self.lanes.has_waiting() {
            return Ok(any_fetched);
        }
        // Read once a batch: it costs as much as a request.
        let now = Instant::now();
        self.queue.set_taken_at(&self.batch.tags, now);
        let any_taken = any_fetched || !self.batch.tags.is_empty();
        if self.lanes.is_active() {
            self.lanes.put(self.queue.requests(), &mut self.batch.tags);
            self.lanes.release(now, &mut self.batch.tags);
        }
        let any_started = !self.batch.tags.is_empty();
        if any_started {
            self.start_batch();
        }
        self.stats.set_in_flight(self.queue.in_flight());
        if now.saturating_duration_since(self.refreshed) >= REFRESH_INTERVAL {
            self.refresh(now);
            if now.saturating_duration_since(self.given_back) >= UNUSED_INTERVAL {
                self.give_back_unused(now);
            }
        }
        Ok(any_taken || any_started)
    }

    /// Starts the requests of the batch. Those that wait for memory are started with a later one, when some is given back.
    fn start_batch(&mut self) {
        loop {
            let Batch { tags, ready, failed, .. } = &mut self.batch;
            self.guest_data.start(self.queue.requests(), tags, ready, failed);
            tags.clear();
            self.gate.pass(ready, self.guest_data.in_engine());
            self.engine.submit(ready);
            self.fail(ErrorKind::Grant);
            // The one that they waited for has failed.
            if !self.guest_data.has_waiting() || self.guest_data.in_engine() > 0 {
                return;
            }
            self.guest_data.take_waiting(&mut self.batch.tags);
        }
    }

    /// Fetches the segments of indirect requests that were taken, and adds those that pass their check to the batch; returns
    /// whether there were any.
    #[cold]
    fn fetch(&mut self) -> bool {
        let Batch { unfetched, tags, failed, .. } = &mut self.batch;
        self.queue.take_unfetched(unfetched);
        self.segment_pages.fetch(self.queue.requests(), unfetched);
        self.has_spare = true;
        let any = !unfetched.is_empty();
        for (number, tag) in unfetched.drain(..).enumerate() {
            match self.segment_pages.get(number) {
                Some(bytes) if self.queue.fetched(tag, bytes) => tags.push(tag),
                Some(_) => {}
                None => failed.push(tag),
            }
        }
        self.fail(ErrorKind::Grant);
        any
    }

    /// Answers the requests that fail; returns whether there are any.
    fn fail(&mut self, kind: ErrorKind) -> bool {
        let any = !self.batch.failed.is_empty();
        for tag in self.batch.failed.drain(..) {
            self.stats.failed(self.queue.requests()[tag].operation(), kind);
            self.queue.complete(tag, Status::ERROR);
        }
        any
    }

    /// Reads the disk's properties, which may take long. If they changed, the control thread advertises them to the frontend and
    /// sends a command.
    #[cold]
    fn refresh(&mut self, now: Instant) {
        self.refreshed = now;
        self.config.watch.look(&*self.config.disk);
    }

    fn complete_requests(&mut self) -> Result<bool, ExitReason> {
        if self.guest_data.in_engine() == 0 {
            return Ok(false);
        }
        self.engine.poll(&mut self.completions).map_err(ExitReason::Engine)?;
        self.guest_data.reclaim(&mut self.batch.failed);
        let any_dropped = self.fail(ErrorKind::Io);
        if self.completions.is_empty() {
            if any_dropped {
                self.submit_held();
                self.start_waiting();
            }
            return Ok(any_dropped);
        }
        let Batch { tags, finished, .. } = &mut self.batch;
        self.guest_data.finish(self.queue.requests(), &mut self.completions, finished, tags);
        let now = Instant::now();
        let mut tally = Tally::new(&self.stats, now);
        for Finished { tag, result } in finished.drain(..) {
            let request = &self.queue.requests()[tag];
            let status = match result {
                Ok(()) => {
                    tally.done(request.operation(), request.bytes(), request.taken_at().unwrap_or(now));
                    Status::OKAY
                }
                Err((kind, error)) => {
                    failed(&self.config, &mut self.error_log, request.operation(), kind, &error)
                }
            };
            self.queue.complete(tag, status);
        }
        drop(tally);
        self.submit_held();
        // Some once more, with their data copied. Their time counts from when they were taken from the ring.
        self.start_waiting();
        self.stats.set_in_flight(self.queue.in_flight());
        Ok(true)
    }

    /// Submits operations that were held back, as many as the ring may have at the disk's medium by now.
    #[inline]
    fn submit_held(&mut self) {
        if self.gate.is_shared() {
            self.gate.pass(&mut self.batch.ready, self.guest_data.in_engine());
            self.engine.submit(&mut self.batch.ready);
        }
    }

    /// Starts the requests of the batch, and those that waited for memory.
    #[inline]
    fn start_waiting(&mut self) {
        self.guest_data.take_waiting(&mut self.batch.tags);
        if !self.batch.tags.is_empty() {
            self.start_batch();
        }
    }

    fn publish_responses(&mut self) -> Result<(), ExitReason> {
        if self.queue.has_uncommitted() {
            self.notifier.want(self.queue.commit());
            self.notifier.flush()?;
        }
        Ok(())
    }

    /// Waits for the engine to hand back all operations: only then may pages be unmapped. To `finish` is to start the
    /// requests, too, that wait for a barrier or for their time, or were inherited.
    fn drain(&mut self, commands: &Commands, finish: bool) -> Result<(), ExitReason> {
        self.notifier.unregister(&self.event_set);
        self.event_set.remove(&commands.event);
        // Requests that were taken before a fault of the frontend are not started any more.
        self.batch.tags.clear();
        if !finish {
            self.guest_data.take_waiting(&mut self.batch.tags);
            self.batch.tags.clear();
            self.lanes.clear();
        }
        loop {
            let any_started = finish && self.start_taken();
            let any_completed = self.complete_requests()?;
            if any_started || any_completed {
                continue;
            }
            if self.guest_data.in_engine() == 0 {
                return Ok(());
            }
            self.wait(None)?;
        }
    }

    /// Starts requests that were taken already, at once whatever the limits are; `true` if there were any.
    fn start_taken(&mut self) -> bool {
        while let Some(tag) = self.queue.poll_taken() {
            self.batch.tags.push(tag);
        }
        let any_fetched = self.queue.has_unfetched() && self.fetch();
        if self.batch.tags.is_empty() && !self.lanes.has_waiting() {
            return any_fetched;
        }
        let now = Instant::now();
        self.queue.set_taken_at(&self.batch.tags, now);
        self.lanes.put(self.queue.requests(), &mut self.batch.tags);
        self.lanes.release_all(now, &mut self.batch.tags);
        self.start_batch();
        true
    }
}

/// Counts a request that the disk failed, and logs it if none was for a while.
#[cold]
fn failed(
    config: &RingConfig,
    log: &mut ErrorLog,
    operation: Operation,
    kind: ErrorKind,
    error: &io::Error,
) -> Status {
    if let Some(unsaid) = log.admit(Instant::now()) {
        tracing::warn!(?operation, %error, disk = config.disk.name(), unsaid, "failed request");
    }
    let is_optional = matches!(operation, Operation::Flush | Operation::Discard);
    let unsupported = is_optional && error.kind() == io::ErrorKind::Unsupported;
    let kind = match error.raw_os_error() {
        _ if unsupported => ErrorKind::NotSupported,
        Some(libc::ENOSPC | libc::EDQUOT) => ErrorKind::NoSpace,
        _ => kind,
    };
    config.stats.failed(operation, kind);
    if unsupported { Status::EOPNOTSUPP } else { Status::ERROR }
}
