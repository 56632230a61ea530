//! The backend's protocol as a value: requests in, tasks out, each request answered exactly once.
//!
//! A task is named by a [`JobId`] of ours; the peer's ids are only echoed, and may repeat.

use crate::check::{Limits, Segments, Work, check};
use crate::order::{Order, Step};
use ring_abi::blkif::{Request, Response, Status};
use ring_abi::ring::inflight_log::{InflightLog, LogMismatch};
use ring_abi::ring::{Back, BadMemory, Fault, Notify, Protocol};
use ring_abi::shm::Memory;

/// Our name for a request in flight.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct JobId(pub u32);

/// What is to be done with the disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Op {
    /// Disk to memory.
    Read,
    /// Memory to disk.
    Write,
    /// Completed writes become durable.
    Flush,
}

/// One thing to do; [`Queue::complete`] is called once for each.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Task {
    /// To complete it by.
    pub job: JobId,
    /// What to do.
    pub op: Op,
    /// First sector, in units of 512 bytes; checked. 0 for a flush.
    pub sector: u64,
    /// Checked; none for a flush.
    pub segments: Segments,
}

/// A request in flight, as the peer knows it.
#[derive(Clone, Copy, Debug, Default)]
struct Job {
    id: u64,
    operation: u8,
    live: bool,
}

/// Why a ring cannot be served where an earlier backend has left it.
#[derive(Debug, thiserror::Error)]
pub enum ResumeError {
    /// It is no ring.
    #[error(transparent)]
    Memory(#[from] BadMemory),
    /// What was kept is no in-flight log of it.
    #[error(transparent)]
    LogMismatch(#[from] LogMismatch),
    /// The ring does not agree with the in-flight log.
    #[error(transparent)]
    Fault(#[from] Fault),
    /// The ring has another number of requests that were not answered than the in-flight log.
    #[error("{inflight_log} requests in flight were kept, but the ring waits for {ring} answers")]
    Lost {
        /// In the in-flight log.
        inflight_log: usize,
        /// In the ring.
        ring: u32,
    },
}

/// One ring, served. With an [`InflightLog`] in memory `L`, what is in flight is known to whoever comes after us.
#[derive(Debug)]
pub struct Queue<P, M, L = M> {
    ring: Back<P, M>,
    limits: Limits,
    order: Order,
    jobs: Vec<Job>,
    free: Vec<u32>,
    refused: u64,
    /// Answers were pushed since the last commit.
    answered: bool,
    inflight_log: Option<InflightLog<P, L>>,
    /// Answered but not published: their entries of the in-flight log are still needed.
    unpublished: Vec<u32>,
    /// What an earlier backend has taken and not answered, the oldest last.
    inherited: Vec<(u32, Request)>,
}

impl<P, M, L> Queue<P, M, L>
where
    P: Protocol<Request = Request, Response = Response>,
    M: Memory,
    L: Memory,
{
    /// Joins the frontend's ring.
    ///
    /// # Errors
    /// [`BadMemory`] if the memory cannot be a ring.
    pub fn attach(memory: M, limits: Limits) -> Result<Self, BadMemory> {
        Ok(Self::over(Back::attach(memory)?, limits))
    }

    /// Joins the frontend's ring, and keeps an in-flight log of it.
    ///
    /// # Errors
    /// [`ResumeError::Memory`]; [`ResumeError::LogMismatch`] where the in-flight log's memory is too small.
    pub fn attach_recording(memory: M, limits: Limits, kept: L) -> Result<Self, ResumeError> {
        let mut queue = Self::attach(memory, limits)?;
        queue.inflight_log = Some(InflightLog::start(kept, queue.ring.size(), queue.ring.consumed())?);
        queue.unpublished.reserve(queue.jobs.len());
        Ok(queue)
    }

    /// Goes on where an earlier backend was that has kept an in-flight log: what it took and did not answer is
    /// taken again.
    ///
    /// # Errors
    /// [`ResumeError`].
    pub fn resume(memory: M, limits: Limits, kept: L) -> Result<Self, ResumeError> {
        let mut ring: Back<P, M> = Back::attach(memory)?;
        let mut inflight_log = InflightLog::open(kept, ring.size())?;
        let (published, taken) = (ring.produced(), inflight_log.taken());
        ring.rejoin(taken)?;
        let mut queue = Self::over(ring, limits);
        let mut lost: Vec<_> = (0..queue.ring.size())
            .filter_map(|slot| {
                inflight_log.unanswered(slot, published).map(|(index, request)| (index, slot, request))
            })
            .collect();
        if lost.len() as u32 != queue.ring.unanswered() {
            return Err(ResumeError::Lost { inflight_log: lost.len(), ring: queue.ring.unanswered() });
        }
        // Those taken last lie nearest behind `taken`.
        lost.sort_unstable_by_key(|(index, ..)| taken.wrapping_sub(*index));
        queue.free.retain(|slot| lost.iter().all(|(_, lost, _)| lost != slot));
        for (_, slot, request) in lost {
            queue.jobs[slot as usize] = Job::of(&request);
            queue.inherited.push((slot, request));
        }
        queue.inflight_log = Some(inflight_log);
        queue.unpublished.reserve(queue.jobs.len());
        Ok(queue)
    }

    fn over(ring: Back<P, M>, limits: Limits) -> Self {
        let size = ring.size();
        let (jobs, free) = (vec![Job::default(); size as usize], (0..size).rev().collect());
        Self {
            ring,
            limits,
            order: Order::default(),
            jobs,
            free,
            refused: 0,
            answered: false,
            inflight_log: None,
            unpublished: Vec::new(),
            inherited: Vec::new(),
        }
    }

    /// The disk changed: what is taken from now on is checked against these.
    pub fn set_limits(&mut self, limits: Limits) {
        self.limits = limits;
    }

    /// Requests that can be in flight at once.
    pub fn size(&self) -> usize {
        self.jobs.len()
    }

    /// Requests taken, or inherited, and not answered.
    #[inline]
    pub fn in_flight(&self) -> usize {
        self.jobs.len() - self.free.len() - self.unpublished.len()
    }

    /// Requests answered here because they were wrong or not supported.
    pub fn refused(&self) -> u64 {
        self.refused
    }

    /// The next task, if there is one that may be carried out now. Wrong requests are answered on the way, at most
    /// a ring of them in one call.
    ///
    /// # Errors
    /// [`Fault`]: close this device.
    #[inline]
    pub fn poll(&mut self) -> Result<Option<Task>, Fault> {
        if !self.order.is_open() {
            return Ok(self.next_step());
        }
        if !self.inherited.is_empty() {
            return Ok(self.take_inherited());
        }
        for _ in 0..self.jobs.len() {
            // A ring never holds more requests than it has slots; but answers that are not published hold entries.
            let Some(&slot) = self.free.last() else { return Ok(None) };
            let Some(request) = self.ring.pop()? else { return Ok(None) };
            self.free.pop();
            self.jobs[slot as usize] = Job::of(&request);
            if let Some(inflight_log) = &mut self.inflight_log {
                inflight_log.take(slot, self.ring.consumed().wrapping_sub(1), &request);
            }
            if let Some(work) = self.admit(slot, &request) {
                return Ok(self.take(slot, work));
            }
        }
        Ok(None)
    }

    /// The next of what an earlier backend has left undone.
    fn take_inherited(&mut self) -> Option<Task> {
        while let Some((slot, request)) = self.inherited.pop() {
            if let Some(work) = self.admit(slot, &request) {
                return self.take(slot, work);
            }
        }
        None
    }

    /// What a request asks for; answers it where that cannot be.
    #[inline]
    fn admit(&mut self, slot: u32, request: &Request) -> Option<Work> {
        match check(request, &self.limits) {
            Ok(work) => Some(work),
            Err(status) => {
                self.refuse(slot, status);
                None
            }
        }
    }

    #[inline]
    fn take(&mut self, slot: u32, work: Work) -> Option<Task> {
        let job = JobId(slot);
        match work {
            Work::Read(t) => Some(Task { job, op: Op::Read, sector: t.sector, segments: t.segments }),
            Work::Write(t) => Some(Task { job, op: Op::Write, sector: t.sector, segments: t.segments }),
            Work::Flush => Some(flush(job)),
            Work::Barrier(transfer) => {
                self.order.begin(job, transfer);
                self.next_step()
            }
        }
    }

    fn next_step(&mut self) -> Option<Task> {
        // What is inherited and younger than the barrier waits with it.
        let others = self.in_flight() - 1 - self.inherited.len();
        Some(match self.order.next(others)? {
            Step::Flush(job) => flush(job),
            Step::Write(job, t) => Task { job, op: Op::Write, sector: t.sector, segments: t.segments },
        })
    }

    #[cold]
    fn refuse(&mut self, slot: u32, status: Status) {
        self.refused += 1;
        self.answer(slot, status);
    }

    /// A task is over. What it mapped must be unmapped before: the answer gives the pages back to the frontend.
    #[inline]
    pub fn complete(&mut self, job: JobId, status: Status) {
        let Some(status) = self.order.complete(job, status) else { return };
        self.answer(job.0, status);
    }

    #[inline]
    fn answer(&mut self, slot: u32, status: Status) {
        let known = self.jobs.get_mut(slot as usize).filter(|j| j.live);
        debug_assert!(known.is_some(), "job {slot} completed twice");
        let Some(entry) = known else { return };
        entry.live = false;
        let response = Response { id: entry.id, operation: entry.operation, status };
        match &mut self.inflight_log {
            Some(inflight_log) => {
                inflight_log.answer(slot, self.ring.produced());
                self.unpublished.push(slot);
            }
            None => self.free.push(slot),
        }
        self.ring.push(&response);
        self.answered = true;
    }

    /// Publishes the answers, if there are any; says whether the frontend wants to be woken for them.
    #[inline]
    pub fn commit(&mut self) -> Notify {
        if !std::mem::take(&mut self.answered) {
            return Notify::No;
        }
        let notify = self.ring.commit();
        if let Some(inflight_log) = &mut self.inflight_log {
            for slot in self.unpublished.drain(..) {
                inflight_log.end(slot);
                self.free.push(slot);
            }
        }
        notify
    }

    /// Asks to be woken by the next request; `true` if there is something to take already.
    ///
    /// # Errors
    /// [`Fault`]: close this device.
    pub fn arm(&mut self) -> Result<bool, Fault> {
        // Behind a barrier nothing is taken: its completion wakes, not the ring.
        Ok(self.ring.arm()? && self.order.is_open())
    }
}

impl Job {
    #[inline]
    fn of(request: &Request) -> Job {
        Job { id: request.id(), operation: request.operation(), live: true }
    }
}

fn flush(job: JobId) -> Task {
    Task { job, op: Op::Flush, sector: 0, segments: Segments::new() }
}

#[cfg(test)]
mod tests;
