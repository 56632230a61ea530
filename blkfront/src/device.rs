// Not a core: does I/O or calls a hypervisor.

//! A disk over a hypervisor, used by one thread at a time without locks.

use std::os::fd::BorrowedFd;
use std::sync::Arc;
use std::time::{Duration, Instant};

use event_channel::{Notifiers, WaitChannel, WaitEventChannels};
use event_loop::{AdaptivePoll, EventSet, Ready};
use grant_table::{GrantTable, Shared};
use ring_abi::blkif::{MAX_INDIRECT_PAGES, SECTOR, Status, X86_64};
use ring_abi::{DomId, GrantRef, PAGE_SIZE};
use xenbus::frontend::{self, Frontend};

use crate::buffer::Buffer;
use crate::error::{Error, Result};
use crate::handshake::Negotiated;
use crate::queue::Operation;
use crate::queues::Queues;
use crate::request::{Completion, Request};
use crate::ring_pages::RingPages;
use crate::split::MAX_REQUEST_BYTES;
use crate::stats::{Stats, Tally};

/// Options for opening a disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Options {
    /// The binary logarithm of the pages of all queues' rings together, if the backend supports as many: 0 allows 32 requests in
    /// flight, 4 allows 512. Each ring has a page at least, and as many as the others.
    pub ring_page_order: u32,
    /// The most queues, if the backend offers as many: each is a ring, and has a thread of the backend. At most
    /// [`MAX_QUEUES`](crate::handshake::MAX_QUEUES).
    pub queues: u32,
    /// How long [`Disk::open`] and [`Disk::close`] wait for the backend.
    pub timeout: Duration,
    /// How long [`Disk::wait`] polls before it sleeps.
    pub busy_poll: Duration,
}

impl Default for Options {
    fn default() -> Options {
        Options {
            ring_page_order: 0,
            queues: 1,
            timeout: Duration::from_secs(30),
            busy_poll: Duration::from_micros(20),
        }
    }
}

/// The tokens of the descriptors that the disk waits for.
pub(crate) const STORE: u64 = 0;
/// The token of the descriptor that ends [`Disk::open_until`].
pub(crate) const STOP: u64 = 1;
/// The token of the first queue's event channel; the others follow.
pub(crate) const CHANNEL: u64 = 2;

/// Consecutive empty polls after which the store's events are processed, so that a caller that never waits learns
/// of a new size or a restarted backend too.
const EMPTY_POLLS_MAX: u32 = 4096;

/// Polls of the ring between two reads of the clock while busy polling.
const POLLS_PER_CLOCK_READ: u32 = 64;

/// An open virtual block device.
///
/// ```no_run
/// use std::sync::Arc;
///
/// use blkfront::Disk;
/// use event_channel::WaitEventChannels;
/// use event_loop::Connector;
/// use grant_table::GrantTable;
///
/// /// Increments the first byte of the guest's disk xvda (device 51712).
/// fn increment(
///     grants: Arc<dyn GrantTable>,
///     channels: Arc<dyn WaitEventChannels>,
///     store: Arc<dyn Connector>,
/// ) -> Result<(), Box<dyn std::error::Error>> {
///     let mut disk = Disk::open(grants, channels, store, 51712)?;
///     let info = disk.info().ok_or("not connected")?;
///     let mut sector = vec![0; info.sector_size as usize];
///     disk.read_at(0, &mut sector)?;
///     sector[0] = sector[0].wrapping_add(1);
///     disk.write_at(0, &sector)?;
///     disk.flush()?;
///     Ok(disk.close()?)
/// }
/// ```
pub struct Disk {
    pub(crate) grants: Arc<dyn GrantTable>,
    pub(crate) channels: Arc<dyn WaitEventChannels>,
    pub(crate) frontend: Frontend,
    pub(crate) peer: DomId,
    pub(crate) options: Options,
    pub(crate) negotiated: Option<Negotiated>,
    pub(crate) queues: Queues<X86_64, Shared, Request>,
    /// The pages of rings that are not in use.
    pub(crate) rings: RingPages,
    /// Those of the queues, if there are rings.
    pub(crate) notifiers: Notifiers<Box<dyn WaitChannel>>,
    /// The counters over all connections.
    pub(crate) stats: Arc<Stats>,
    /// Consecutive empty polls.
    pub(crate) empty_polls: u32,
    pub(crate) adaptive_poll: AdaptivePoll,
    /// The backend's end of an event channel is closed: what is on the rings is not answered any more.
    pub(crate) backend_lost: bool,
    /// See [`Disk::set_in_use`].
    pub(crate) in_use: bool,
    /// Requests that are too large for a new backend, to be completed.
    pub(crate) given_up: Vec<Request>,
    /// Buffers of earlier blocking calls.
    pub(crate) spare: Vec<Buffer>,
}

impl Disk {
    /// Says whether the disk is in use. While it is, a toolstack's request to close a connected disk is not followed but
    /// reported as an error of this end (EBUSY), as Linux's blkfront does for a disk that is open; it is followed once
    /// the disk is not in use any more. A disk whose node is removed is closed all the same.
    ///
    /// # Errors
    /// As [`Disk::wait`].
    pub fn set_in_use(&mut self, in_use: bool) -> Result<()> {
        self.in_use = in_use;
        if in_use { Ok(()) } else { self.follow_backend() }
    }

    /// The disk's properties, as the backend last published them; `None` until one has connected.
    pub fn info(&self) -> Option<&Negotiated> {
        self.negotiated.as_ref()
    }

    /// The backend's domain, to which the buffers of [`Disk::buffer`] are granted.
    pub fn backend(&self) -> DomId {
        self.peer
    }

    /// Requests that can be in flight at once.
    pub fn depth(&self) -> usize {
        self.queues.size() as usize
    }

    /// Requests in flight.
    pub fn in_flight(&self) -> usize {
        self.queues.in_flight() + self.given_up.len()
    }

    /// The counters over all connections, for other threads to read.
    pub fn stats(&self) -> &Arc<Stats> {
        &self.stats
    }

    /// The most bytes that a read or write carries: 44 KiB, or with a backend that supports indirect segments more, up to 1 MiB.
    /// The next backend may support less. Barriers carry 44 KiB at most.
    pub fn max_request_bytes(&self) -> usize {
        let indirect = self.negotiated.map_or(0, |negotiated| usize::from(negotiated.indirect_segments));
        (indirect * PAGE_SIZE).max(MAX_REQUEST_BYTES)
    }

    /// Grants pages for requests of up to `bytes` bytes. A buffer for more than 44 KiB has pages for the segments, too.
    ///
    /// # Errors
    /// [`Error::Length`] if `bytes` is 0 or more than [`Disk::max_request_bytes`]; [`Error::Grant`] if no more pages can be granted.
    pub fn buffer(&self, bytes: usize) -> Result<Buffer> {
        Buffer::new(&*self.grants, self.peer, bytes, self.max_request_bytes())
    }

    /// Submits a request, which reaches the backend with the next [`Disk::commit`] or [`Disk::wait`]. While the
    /// backend is disconnected requests are kept, and sent when it reconnects.
    ///
    /// # Errors
    /// Gives the request back if the rings are full, if it is a [`Barrier`](Operation::Barrier) and others are in flight on another ring than
    /// its own, if the device is closed (see [`Disk::is_closed`]), or if its bytes
    /// are no whole sectors inside its buffer.
    #[inline]
    pub fn submit(&mut self, request: Request) -> std::result::Result<(), Request> {
        let is_valid = request.buffer.as_ref().is_none_or(|buffer| buffer.has_sectors(request.bytes));
        if !is_valid || self.frontend.is_closed() {
            return Err(request);
        }
        if request.bytes > MAX_REQUEST_BYTES || request.operation == Operation::Discard {
            return self.submit_other(request);
        }
        let Request { operation, sector, .. } = request;
        self.queues.submit_with(operation, sector, request, |request, segments| {
            if let Some(buffer) = &request.buffer {
                buffer.push_segments(request.bytes, segments);
            }
        })
    }

    /// Submits a discard, or a request for more than its own segments hold.
    #[cold]
    fn submit_other(&mut self, request: Request) -> std::result::Result<(), Request> {
        let Request { operation, sector, bytes, .. } = request;
        if operation == Operation::Discard {
            return self.queues.submit_discard(sector, (bytes / SECTOR) as u64, request);
        }
        let is_transfer = matches!(operation, Operation::Read | Operation::Write);
        if !is_transfer || bytes > self.max_request_bytes() {
            return Err(request);
        }
        self.queues.submit_indirect(operation, sector, request, |request| match &request.buffer {
            Some(buffer) => buffer.describe(request.bytes),
            None => (0, [GrantRef(0); MAX_INDIRECT_PAGES]),
        })
    }

    /// Publishes submitted requests, and notifies the backend if it waits for them.
    ///
    /// # Errors
    /// [`Error::Channel`] if the event channel cannot be notified.
    #[inline]
    pub fn commit(&mut self) -> Result<()> {
        if !self.frontend.is_connected() && !self.frontend.is_closing() {
            return Ok(());
        }
        let is_published = self.queues.has_uncommitted();
        if is_published {
            self.stats.set_in_flight(self.queues.in_flight());
            for number in 0..self.notifiers.len() {
                self.notifiers.want(number, self.queues.commit(number));
            }
        }
        match self.notifiers.flush() {
            // The backend's domain was destroyed; a successor will connect.
            Ok(()) | Err(event_channel::Error::Closed) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }

    /// Appends completed requests to `completions` without waiting; returns how many. A request that was in flight when another
    /// backend connected, and is larger than that supports ([`Disk::max_request_bytes`]), completes with `EOPNOTSUPP`: it may have been
    /// carried out, and is to be made again in parts.
    ///
    /// # Errors
    /// [`Error::Fault`] if the backend broke the protocol, for which the device is closed.
    #[inline]
    pub fn poll(&mut self, completions: &mut Vec<Completion>) -> Result<usize> {
        if !self.given_up.is_empty() {
            return Ok(self.complete_given_up(completions));
        }
        let mut tally = Tally::default();
        let polled = self.queues.poll(|request, status| {
            tally.add(request.operation, request.bytes, status);
            completions.push(Completion { request, status });
        });
        match polled {
            Ok(0) => self.count_empty_poll().map(|()| 0),
            Ok(count) => {
                self.empty_polls = 0;
                self.stats.completed(&tally);
                self.stats.set_in_flight(self.queues.in_flight());
                self.notifiers.worked(true);
                Ok(count)
            }
            Err(fault) => {
                self.stats.completed(&tally);
                Err(self.fault(fault))
            }
        }
    }

    #[cold]
    fn complete_given_up(&mut self, completions: &mut Vec<Completion>) -> usize {
        let mut tally = Tally::default();
        let before = completions.len();
        for request in self.given_up.drain(..) {
            tally.add(request.operation, request.bytes, Status::EOPNOTSUPP);
            completions.push(Completion { request, status: Status::EOPNOTSUPP });
        }
        self.stats.completed(&tally);
        completions.len() - before
    }

    #[inline]
    fn count_empty_poll(&mut self) -> Result<()> {
        self.empty_polls += 1;
        if self.empty_polls < EMPTY_POLLS_MAX {
            return Ok(());
        }
        self.empty_polls = 0;
        self.process_events()
    }

    /// Publishes submitted requests and waits until a request completes, the backend's state changes, or `timeout`
    /// passes. Appends completed requests to `completions`; returns how many.
    ///
    /// # Errors
    /// As [`Disk::poll`]; [`Error::Closed`] if the device is closed.
    pub fn wait(&mut self, completions: &mut Vec<Completion>, timeout: Option<Duration>) -> Result<usize> {
        self.commit()?;
        let count = self.busy_poll(completions)?;
        if count > 0 {
            return Ok(count);
        }
        let start = Instant::now();
        frontend::finish_close(self)?;
        if self.frontend.is_closed() && !self.frontend.is_closing() {
            return Err(Error::Closed);
        }
        if !self.arm()? {
            self.sleep(timeout.map(|t| start + t))?;
        }
        self.poll(completions)
    }

    /// Polls for a short while before sleeping, unless that found nothing lately.
    fn busy_poll(&mut self, completions: &mut Vec<Completion>) -> Result<usize> {
        let count = self.poll(completions)?;
        if count > 0 || self.options.busy_poll.is_zero() || !self.adaptive_poll.should_poll() {
            return Ok(count);
        }
        let start = Instant::now();
        while start.elapsed() < self.options.busy_poll {
            for _ in 0..POLLS_PER_CLOCK_READ {
                let count = self.poll(completions)?;
                if count > 0 {
                    self.adaptive_poll.hit();
                    return Ok(count);
                }
                std::hint::spin_loop();
            }
        }
        self.adaptive_poll.miss();
        Ok(0)
    }

    /// A descriptor that becomes readable when [`Disk::wait`] would return, once [`Disk::arm`] has returned `false`.
    pub fn fd(&self) -> BorrowedFd<'_> {
        self.frontend.fd()
    }

    /// Arms [`Disk::fd`] for the next completion; `true` if there is one already.
    ///
    /// # Errors
    /// As [`Disk::poll`].
    pub fn arm(&mut self) -> Result<bool> {
        self.limit_events()?;
        if !self.given_up.is_empty() {
            return Ok(true);
        }
        self.queues.arm().map_err(|fault| self.fault(fault))
    }

    /// Processes the events that made [`Disk::fd`] readable; to be followed by [`Disk::poll`].
    ///
    /// # Errors
    /// As [`Disk::wait`].
    pub fn process_events(&mut self) -> Result<()> {
        self.sleep(Some(Instant::now())).map(drop)
    }

    /// Whether the device is closed for good.
    pub fn is_closed(&self) -> bool {
        self.frontend.is_closed()
    }

    /// Waits for the requests in flight, for a limited time ([`Options::timeout`]), then closes the device and waits for
    /// the backend to close it too. Requests in flight while the backend is disconnected are dropped.
    ///
    /// # Errors
    /// As [`Disk::wait`]; [`Error::Store`] if a state cannot be written.
    pub fn close(mut self) -> Result<()> {
        let mut completions = Vec::new();
        let timeout = self.options.timeout;
        let deadline = Instant::now() + timeout;
        while self.in_flight() > 0 && self.frontend.is_connected() {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                tracing::warn!(in_flight = self.in_flight(), "timed out: the backend does not answer");
                break;
            }
            self.wait(&mut completions, Some(left))?;
            completions.clear();
        }
        frontend::close(&mut self, timeout)
    }

    /// Sleeps until an event or the deadline, and processes the event.
    pub(crate) fn sleep(&mut self, deadline: Option<Instant>) -> Result<Ready> {
        let timeout = deadline.map(|deadline| deadline.saturating_duration_since(Instant::now()));
        let ready = self.frontend.event_set().wait(timeout)?;
        let of_queues = CHANNEL..CHANNEL + self.notifiers.len() as u64;
        if of_queues.into_iter().any(|token| ready.contains(token)) || ready.contains(EventSet::TIMER) {
            self.take_events()?;
        }
        if ready.contains(STORE) {
            self.follow_store()?;
        }
        Ok(ready)
    }

    /// Masks the event channels for a while if the backend has notified too often without work (XSA-391).
    fn limit_events(&mut self) -> Result<()> {
        if let Some(pause) = self.notifiers.limit_events(self.frontend.event_set())? {
            self.frontend
                .span()
                .in_scope(|| tracing::debug!(?pause, "masking events: the backend notifies without work"));
        }
        Ok(())
    }

    /// Takes pending events of the event channels.
    fn take_events(&mut self) -> Result<()> {
        match self.notifiers.take_events(self.frontend.event_set()) {
            Ok(_) => Ok(()),
            // The backend's process or domain is gone.
            Err(event_channel::Error::Closed) => {
                self.notifiers.unregister(self.frontend.event_set());
                self.lose_backend()
            }
            Err(error) => Err(error.into()),
        }
    }
}
