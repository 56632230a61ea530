//! The backend's side of a ring as a value: requests in, operations for the disk out, each request answered once.
//!
//! A request is copied from the ring into its slot of the [`RequestTable`], and stays there: it is checked in place and
//! named by its [`Tag`]. The frontend's ids are only echoed, and may repeat.

use crate::check::{Checked, Limits, check, check_indirect, check_segments};
use crate::order::Order;
use crate::request::{RequestTable, Tag};
use crate::stats::Refused;
use inflight::{DamagedEntry, InflightLog, LogMismatch};
use ring_abi::blkif::{Request, Response, Status, indirect};
use ring_abi::ring::{Back, BadMemory, Fault, Notify, Protocol};
use ring_abi::shm::Memory;
use std::time::Instant;

/// Requests whose segments are fetched together at most, before others are taken from the ring.
const FETCHED_TOGETHER: usize = 8;

/// Why a ring cannot be served in the state in which an earlier backend left it.
#[derive(Debug, thiserror::Error)]
pub enum ResumeError {
    /// The ring's memory cannot be a ring.
    #[error(transparent)]
    Memory(#[from] BadMemory),
    /// The recorded memory is no in-flight log of the ring.
    #[error(transparent)]
    LogMismatch(#[from] LogMismatch),
    /// The in-flight log does not hold what was recorded.
    #[error(transparent)]
    Damaged(#[from] DamagedEntry),
    /// The ring's indexes contradict the in-flight log.
    #[error(transparent)]
    Fault(#[from] Fault),
    /// The in-flight log and the ring disagree on how many requests are unanswered.
    #[error("{inflight_log} requests are in the in-flight log, but {ring} are unanswered in the ring")]
    Lost {
        /// Requests in the in-flight log.
        inflight_log: usize,
        /// Unanswered requests in the ring.
        ring: u32,
    },
}

/// One ring, served. With an [`InflightLog`] in memory `L`, a successor of this process can resume it.
///
/// ```
/// # use blkback::{check::Limits, queue::Queue};
/// # use ring_abi::{blkif::{Status, X86_64}, ring::Fault, shm::Memory};
/// /// Answers all requests of a frontend; returns how many.
/// fn serve<M: Memory>(queue: &mut Queue<X86_64, M>) -> Result<usize, Fault> {
///     let mut served = 0;
///     while let Some(tag) = queue.poll()? {
///         let request = &queue.requests()[tag];
///         // Carry out `request.operation()` at `request.sector()`, then:
///         queue.complete(tag, Status::OKAY);
///         served += 1;
///     }
///     if queue.commit().wanted() {
///         // Notify the frontend's event channel.
///     }
///     Ok(served)
/// }
/// ```
#[derive(Debug)]
pub struct Queue<P, M, L = M> {
    ring: Back<P, M>,
    limits: Limits,
    order: Order,
    /// As many slots as the ring has.
    requests: RequestTable,
    refused: Refused,
    /// Responses were pushed since the last commit.
    uncommitted: bool,
    inflight_log: Option<InflightLog<P, L>>,
    /// Requests answered but not published: their entries of the in-flight log are still needed.
    unpublished: Vec<Tag>,
    /// Requests that an earlier backend took and did not answer, the oldest last.
    inherited: Vec<Tag>,
    /// Indirect requests that were taken, and whose segments are still in the frontend's pages.
    unfetched: Vec<Tag>,
}

impl<P, M, L> Queue<P, M, L>
where
    P: Protocol<Request = Request, Response = Response>,
    M: Memory,
    L: Memory,
{
    /// Attaches to the frontend's ring.
    ///
    /// # Errors
    /// [`BadMemory`] if the memory cannot be a ring.
    pub fn attach(memory: M, limits: Limits) -> Result<Self, BadMemory> {
        let ring: Back<P, M> = Back::attach(memory)?;
        let requests = RequestTable::new(ring.size());
        Ok(Self::new(ring, limits, requests))
    }

    /// Attaches to the frontend's ring, and records an in-flight log in `log_memory`.
    ///
    /// # Errors
    /// [`ResumeError::Memory`] if the memory cannot be a ring; [`ResumeError::LogMismatch`] if the in-flight log's
    /// memory is too small.
    pub fn attach_recording(memory: M, limits: Limits, log_memory: L) -> Result<Self, ResumeError> {
        let mut queue = Self::attach(memory, limits)?;
        queue.inflight_log = Some(InflightLog::start(log_memory, queue.ring.size(), queue.ring.consumed())?);
        queue.unpublished.reserve(queue.size());
        Ok(queue)
    }

    /// Resumes the ring of an earlier backend that recorded an in-flight log: requests that it took and did not
    /// answer are taken again.
    ///
    /// # Errors
    /// [`ResumeError`] says which of ring and log is unusable, or where they disagree.
    pub fn resume(memory: M, limits: Limits, log_memory: L) -> Result<Self, ResumeError> {
        let mut ring: Back<P, M> = Back::attach(memory)?;
        let mut inflight_log: InflightLog<P, L> = InflightLog::open(log_memory, ring.size())?;
        let published = ring.produced();
        let taken = inflight_log.taken();
        ring.resume_at(taken)?;
        let lost = inflight_log.unanswered(published)?;
        if lost.len() as u32 != ring.unanswered() {
            return Err(ResumeError::Lost { inflight_log: lost.len(), ring: ring.unanswered() });
        }
        // The one that was taken first is the last of the list.
        let inherited = lost.iter().rev().map(|(slot, ..)| Tag(*slot)).collect();
        let size = ring.size();
        let requests =
            RequestTable::resume(size, lost.into_iter().map(|(slot, _, request)| (Tag(slot), request)));
        let mut queue = Self::new(ring, limits, requests);
        queue.inherited = inherited;
        queue.inflight_log = Some(inflight_log);
        queue.unpublished.reserve(queue.size());
        Ok(queue)
    }

    fn new(ring: Back<P, M>, limits: Limits, requests: RequestTable) -> Self {
        Self {
            ring,
            limits,
            order: Order::default(),
            requests,
            refused: Refused::default(),
            uncommitted: false,
            inflight_log: None,
            unpublished: Vec::new(),
            inherited: Vec::new(),
            unfetched: Vec::new(),
        }
    }

    /// Sets the limits against which requests taken from now on are checked, after the disk has changed.
    pub fn set_limits(&mut self, limits: Limits) {
        self.limits = limits;
    }

    /// Requests that can be in flight at once.
    #[inline]
    pub fn size(&self) -> usize {
        self.ring.size() as usize
    }

    /// Requests taken, or inherited, and not answered.
    #[inline]
    pub fn in_flight(&self) -> usize {
        self.requests.len() - self.unpublished.len()
    }

    /// The requests in flight.
    #[inline]
    pub fn requests(&self) -> &RequestTable {
        &self.requests
    }

    /// Records when requests were taken.
    #[inline]
    pub fn set_taken_at(&mut self, tags: &[Tag], now: Instant) {
        tags.iter().for_each(|tag| self.requests[*tag].set_taken_at(now));
    }

    /// The counts of requests that were answered without an operation, for the caller to take.
    #[inline]
    pub fn refused(&mut self) -> &mut Refused {
        &mut self.refused
    }

    /// Whether responses wait for [`Queue::commit`].
    #[inline]
    pub fn has_uncommitted(&self) -> bool {
        self.uncommitted
    }

    /// Starts to fetch the next `count` requests from the ring, of those that are there.
    #[inline]
    pub fn prefetch(&mut self, count: usize) {
        // The fault of an impossible index is found once more when a request is taken.
        if self.ring.seen() > 0 || self.ring.refresh().unwrap_or(false) {
            self.ring.prefetch(count as u32);
        }
    }

    /// Returns the next request whose operation may be carried out now. Requests that fail their check are answered on
    /// the way, at most as many in one call as the ring has slots. Indirect ones are put aside, for [`Queue::take_unfetched`]; after
    /// some of them `None` is returned though there may be more requests.
    ///
    /// # Errors
    /// [`Fault`] if the frontend's producer index is impossible: close this device.
    #[inline]
    pub fn poll(&mut self) -> Result<Option<Tag>, Fault> {
        if !self.order.is_open() || !self.inherited.is_empty() {
            return Ok(self.poll_taken());
        }
        for _ in 0..self.size() {
            // A ring never holds more requests than slots, but requests whose responses are not published keep
            // theirs.
            let Some(tag) = self.requests.take(|request| self.ring.pop_into(request))? else {
                return Ok(None);
            };
            if let Some(inflight_log) = &mut self.inflight_log {
                inflight_log.take(tag.0, self.ring.consumed().wrapping_sub(1), self.requests[tag].request());
            }
            if let Some(checked) = self.admit(tag) {
                return Ok(self.start(tag, checked));
            }
            if self.unfetched.len() >= FETCHED_TOGETHER {
                break;
            }
        }
        Ok(None)
    }

    /// Returns, as [`Queue::poll`] does, the next request of those that were taken or inherited already: none is taken from
    /// the ring.
    #[cold]
    pub fn poll_taken(&mut self) -> Option<Tag> {
        if self.order.is_open() { self.take_inherited() } else { self.next_step() }
    }

    /// The next of the requests that an earlier backend did not answer.
    #[cold]
    fn take_inherited(&mut self) -> Option<Tag> {
        while self.unfetched.len() < FETCHED_TOGETHER {
            let tag = self.inherited.pop()?;
            if let Some(checked) = self.admit(tag) {
                return self.start(tag, checked);
            }
        }
        None
    }

    /// Whether there are indirect requests whose segments are to be fetched.
    #[inline]
    pub fn has_unfetched(&self) -> bool {
        !self.unfetched.is_empty()
    }

    /// Appends the indirect requests whose segments are to be fetched to `tags`: each is to be given to [`Queue::fetched`], or
    /// completed with an error where the frontend's pages cannot be read.
    pub fn take_unfetched(&mut self, tags: &mut Vec<Tag>) {
        tags.append(&mut self.unfetched);
    }

    /// Gives an indirect request a private copy of its pages of segments. Returns whether its operation may be carried out now: a
    /// request that fails its check is answered.
    pub fn fetched(&mut self, tag: Tag, bytes: &[u8]) -> bool {
        let Request::Indirect(request) = *self.requests[tag].request() else { return false };
        let segments = indirect::segments(bytes).take(request.nr_segments.into());
        self.requests.set_fetched(tag, segments);
        let pending = &mut self.requests[tag];
        let complete = pending.segments().len() == usize::from(request.nr_segments);
        let checked = check_segments(request.sector_number, pending.segments(), &self.limits);
        match checked.ok().filter(|_| complete) {
            Some(bytes) => {
                let operation = pending.operation();
                pending.admit(operation, bytes);
                true
            }
            None => {
                self.refuse(tag, Status::ERROR);
                false
            }
        }
    }

    /// Gives back memory that was used for indirect requests and is not now.
    pub fn give_back_spare(&mut self) {
        self.requests.give_back_spare();
    }

    /// Checks a request, and answers it if it fails the check.
    #[inline(always)]
    fn admit(&mut self, tag: Tag) -> Option<Checked> {
        let pending = &mut self.requests[tag];
        match check(pending.request(), &self.limits) {
            Ok(checked) => {
                pending.admit(checked.operation, checked.bytes);
                Some(checked)
            }
            Err(status) => {
                self.put_aside_or_refuse(tag, status);
                None
            }
        }
    }

    /// Puts an indirect request aside, and answers any other that has failed its check.
    #[cold]
    fn put_aside_or_refuse(&mut self, tag: Tag, status: Status) {
        let pending = &mut self.requests[tag];
        let checked = match pending.request() {
            Request::Indirect(request) => check_indirect(request, &self.limits),
            _ => Err(status),
        };
        match checked {
            Ok(operation) => {
                pending.admit(operation, 0);
                self.unfetched.push(tag);
            }
            Err(status) => self.refuse(tag, status),
        }
    }

    #[inline]
    fn start(&mut self, tag: Tag, checked: Checked) -> Option<Tag> {
        if !checked.barrier {
            return Some(tag);
        }
        self.order.begin(tag, checked.bytes > 0);
        self.next_step()
    }

    #[cold]
    fn next_step(&mut self) -> Option<Tag> {
        // Inherited requests younger than the barrier start after it.
        let others = self.in_flight() - 1 - self.inherited.len();
        let (tag, step) = self.order.next(others)?;
        self.requests[tag].set_step(step);
        Some(tag)
    }

    #[cold]
    fn refuse(&mut self, tag: Tag, status: Status) {
        self.refused.count(self.requests[tag].request().operation(), status);
        self.answer(tag, status);
    }

    /// Records that an operation is complete. Its guest pages must be unmapped before: the response gives them back
    /// to the frontend.
    #[inline]
    pub fn complete(&mut self, tag: Tag, status: Status) {
        let Some(status) = self.order.complete(tag, status) else { return };
        self.answer(tag, status);
    }

    #[inline]
    fn answer(&mut self, tag: Tag, status: Status) {
        let pending = &mut self.requests[tag];
        let in_flight = pending.answer();
        debug_assert!(in_flight, "{tag:?} completed twice");
        if !in_flight {
            return;
        }
        let request = pending.request();
        let response = Response { id: request.id(), operation: request.operation(), status };
        match &mut self.inflight_log {
            Some(inflight_log) => {
                inflight_log.answer(tag.0, self.ring.produced());
                self.unpublished.push(tag);
            }
            None => self.requests.free(tag),
        }
        self.ring.push(&response);
        self.uncommitted = true;
    }

    /// Publishes the responses, if there are any; returns whether the frontend is to be notified of them.
    #[inline]
    pub fn commit(&mut self) -> Notify {
        if !std::mem::take(&mut self.uncommitted) {
            return Notify::No;
        }
        let notify = self.ring.commit();
        if let Some(inflight_log) = &mut self.inflight_log {
            for tag in self.unpublished.drain(..) {
                inflight_log.end(tag.0);
                self.requests.free(tag);
            }
        }
        notify
    }

    /// Sets the ring's event index, so that the next request is notified; `true` if there is one already.
    ///
    /// # Errors
    /// [`Fault`] if the frontend's producer index is impossible: close this device.
    pub fn arm(&mut self) -> Result<bool, Fault> {
        // While a barrier is in flight no request is taken: its completion is the next thing to wait for.
        Ok(self.ring.arm()? && self.order.is_open())
    }
}

#[cfg(test)]
mod tests;
