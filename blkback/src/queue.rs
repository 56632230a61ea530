//! The backend's side of a ring as a value: requests in, operations for the disk out, each request answered once.
//!
//! A request in flight is named by a [`Tag`], its slot's number; the frontend's ids are only echoed, and may repeat.

use crate::check::{CheckedRequest, Limits, ReadWrite, Segments, check};
use crate::disk_request::{DiskRequest, Operation, Tag};
use crate::order::{BarrierStep, Order};
use crate::stats::Refused;
use inflight::{InflightLog, LogMismatch};
use ring_abi::blkif::{Request, Response, Status};
use ring_abi::ring::{Back, BadMemory, Fault, Notify, Protocol};
use ring_abi::shm::Memory;
use slab::Slab;

/// A request in flight, as the frontend knows it.
#[derive(Clone, Copy, Debug)]
struct PendingRequest {
    id: u64,
    operation: u8,
    /// The response is in the ring, but may not be published yet.
    answered: bool,
}

/// Why a ring cannot be served in the state in which an earlier backend left it.
#[derive(Debug, thiserror::Error)]
pub enum ResumeError {
    /// The ring's memory cannot be a ring.
    #[error(transparent)]
    Memory(#[from] BadMemory),
    /// The recorded memory is no in-flight log of the ring.
    #[error(transparent)]
    LogMismatch(#[from] LogMismatch),
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
///     while let Some(request) = queue.poll()? {
///         // Carry out `request.operation` at `request.sector`, then:
///         queue.complete(request.tag, Status::OKAY);
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
    /// At most one request a slot of the ring.
    pending: Slab<PendingRequest>,
    refused: Refused,
    /// Responses were pushed since the last commit.
    uncommitted: bool,
    inflight_log: Option<InflightLog<P, L>>,
    /// Requests answered but not published: their entries of the in-flight log are still needed.
    unpublished: Vec<u32>,
    /// Requests that an earlier backend took and did not answer, the oldest last.
    inherited: Vec<(u32, Request)>,
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
        let pending = Slab::with_capacity(ring.size() as usize);
        Ok(Self::new(ring, limits, pending))
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
        let mut lost = unanswered(&mut inflight_log, ring.size(), published);
        if lost.len() as u32 != ring.unanswered() {
            return Err(ResumeError::Lost { inflight_log: lost.len(), ring: ring.unanswered() });
        }
        // The request taken last is the nearest one behind `taken`.
        lost.sort_unstable_by_key(|(index, ..)| taken.wrapping_sub(*index));
        let pending = lost.iter().map(|(_, slot, request)| (*slot as usize, request.into())).collect();
        let mut queue = Self::new(ring, limits, pending);
        queue.inherited = lost.into_iter().map(|(_, slot, request)| (slot, request)).collect();
        queue.inflight_log = Some(inflight_log);
        queue.unpublished.reserve(queue.size());
        Ok(queue)
    }

    fn new(ring: Back<P, M>, limits: Limits, pending: Slab<PendingRequest>) -> Self {
        Self {
            ring,
            limits,
            order: Order::default(),
            pending,
            refused: Refused::default(),
            uncommitted: false,
            inflight_log: None,
            unpublished: Vec::new(),
            inherited: Vec::new(),
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
        self.pending.len() - self.unpublished.len()
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

    /// Returns the next operation that may be carried out now. Requests that fail their check are answered on the
    /// way, at most as many in one call as the ring has slots.
    ///
    /// # Errors
    /// [`Fault`] if the frontend's producer index is impossible: close this device.
    #[inline]
    pub fn poll(&mut self) -> Result<Option<DiskRequest>, Fault> {
        if !self.order.is_open() {
            return Ok(self.next_step());
        }
        if !self.inherited.is_empty() {
            return Ok(self.take_inherited());
        }
        for _ in 0..self.size() {
            // A ring never holds more requests than slots, but requests whose responses are not published keep
            // theirs.
            if self.pending.len() == self.size() {
                return Ok(None);
            }
            let Some(request) = self.ring.pop()? else { return Ok(None) };
            let slot = self.pending.insert(PendingRequest::from(&request)) as u32;
            if let Some(inflight_log) = &mut self.inflight_log {
                inflight_log.take(slot, self.ring.consumed().wrapping_sub(1), &request);
            }
            if let Some(checked) = self.admit(slot, &request) {
                return Ok(self.start(slot, checked));
            }
        }
        Ok(None)
    }

    /// The next of the requests that an earlier backend did not answer.
    fn take_inherited(&mut self) -> Option<DiskRequest> {
        while let Some((slot, request)) = self.inherited.pop() {
            if let Some(checked) = self.admit(slot, &request) {
                return self.start(slot, checked);
            }
        }
        None
    }

    /// Checks a request, and answers it if it fails the check.
    #[inline]
    fn admit(&mut self, slot: u32, request: &Request) -> Option<CheckedRequest> {
        match check(request, &self.limits) {
            Ok(checked) => Some(checked),
            Err(status) => {
                self.refuse(slot, status);
                None
            }
        }
    }

    #[inline]
    fn start(&mut self, slot: u32, checked: CheckedRequest) -> Option<DiskRequest> {
        let tag = Tag(slot);
        match checked {
            CheckedRequest::Read(data) => Some(read_write(tag, Operation::Read, data)),
            CheckedRequest::Write(data) => Some(read_write(tag, Operation::Write, data)),
            CheckedRequest::Flush => Some(flush(tag)),
            CheckedRequest::Barrier(data) => {
                self.order.begin(tag, data);
                self.next_step()
            }
        }
    }

    fn next_step(&mut self) -> Option<DiskRequest> {
        // Inherited requests younger than the barrier start after it.
        let others = self.in_flight() - 1 - self.inherited.len();
        Some(match self.order.next(others)? {
            BarrierStep::Flush(tag) => flush(tag),
            BarrierStep::Write(tag, data) => read_write(tag, Operation::Write, data),
        })
    }

    #[cold]
    fn refuse(&mut self, slot: u32, status: Status) {
        let operation = self.pending.get(slot as usize).map_or(0, |pending| pending.operation);
        self.refused.count(operation, status);
        self.answer(slot, status);
    }

    /// Records that an operation is complete. Its guest pages must be unmapped before: the response gives them back
    /// to the frontend.
    #[inline]
    pub fn complete(&mut self, tag: Tag, status: Status) {
        let Some(status) = self.order.complete(tag, status) else { return };
        self.answer(tag.0, status);
    }

    #[inline]
    fn answer(&mut self, slot: u32, status: Status) {
        let pending = self.pending.get_mut(slot as usize).filter(|pending| !pending.answered);
        debug_assert!(pending.is_some(), "request {slot} completed twice");
        let Some(pending) = pending else { return };
        pending.answered = true;
        let response = Response { id: pending.id, operation: pending.operation, status };
        match &mut self.inflight_log {
            Some(inflight_log) => {
                inflight_log.answer(slot, self.ring.produced());
                self.unpublished.push(slot);
            }
            None => drop(self.pending.try_remove(slot as usize)),
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
            for slot in self.unpublished.drain(..) {
                inflight_log.end(slot);
                self.pending.try_remove(slot as usize);
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

/// The requests of an in-flight log that have no published response: ring index, slot, request.
fn unanswered<P, L>(log: &mut InflightLog<P, L>, size: u32, published: u32) -> Vec<(u32, u32, Request)>
where
    P: Protocol<Request = Request, Response = Response>,
    L: Memory,
{
    (0..size)
        .filter_map(|slot| {
            let (index, request) = log.unanswered(slot, published)?;
            Some((index, slot, request))
        })
        .collect()
}

impl From<&Request> for PendingRequest {
    #[inline]
    fn from(request: &Request) -> PendingRequest {
        PendingRequest { id: request.id(), operation: request.operation(), answered: false }
    }
}

#[inline]
fn read_write(tag: Tag, operation: Operation, data: ReadWrite) -> DiskRequest {
    DiskRequest { tag, operation, sector: data.sector, segments: data.segments }
}

fn flush(tag: Tag) -> DiskRequest {
    DiskRequest { tag, operation: Operation::Flush, sector: 0, segments: Segments::new() }
}

#[cfg(test)]
mod tests;
