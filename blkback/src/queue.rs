//! The back end's protocol as a value: requests in, tasks out, each request answered exactly once.
//!
//! A task is named by a [`JobId`] of ours; the peer's ids are only echoed, and may repeat.

use crate::check::{Limits, Segments, Work, check};
use crate::order::{Order, Step};
use ring_abi::blkif::{Request, Response, Status};
use ring_abi::ring::{Back, BadMemory, Fault, Notify, Protocol};
use ring_abi::shm::Memory;

/// Our name for a request under way.
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
    /// First sector, in units of 512 octets; checked. 0 for a flush.
    pub sector: u64,
    /// Checked; none for a flush.
    pub segments: Segments,
}

/// A request under way, as the peer knows it.
#[derive(Clone, Copy, Debug, Default)]
struct Job {
    id: u64,
    operation: u8,
    live: bool,
}

/// One ring, served.
#[derive(Debug)]
pub struct Queue<P, M> {
    ring: Back<P, M>,
    limits: Limits,
    order: Order,
    jobs: Vec<Job>,
    free: Vec<u32>,
    refused: u64,
    /// Answers were pushed since the last commit.
    answered: bool,
}

impl<P: Protocol<Request = Request, Response = Response>, M: Memory> Queue<P, M> {
    /// Joins the front end's ring.
    ///
    /// # Errors
    /// [`BadMemory`] if the memory cannot be a ring.
    pub fn attach(memory: M, limits: Limits) -> Result<Self, BadMemory> {
        let ring: Back<P, M> = Back::attach(memory)?;
        let size = ring.size();
        let (jobs, free) = (vec![Job::default(); size as usize], (0..size).rev().collect());
        Ok(Self { ring, limits, order: Order::default(), jobs, free, refused: 0, answered: false })
    }

    /// The disk changed: what is taken from now on is checked against these.
    pub fn set_limits(&mut self, limits: Limits) {
        self.limits = limits;
    }

    /// Requests that can be under way at once.
    pub fn size(&self) -> usize {
        self.jobs.len()
    }

    /// Tasks given out and not completed.
    #[inline]
    pub fn under_way(&self) -> usize {
        self.jobs.len() - self.free.len()
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
        for _ in 0..self.jobs.len() {
            let Some(request) = self.ring.pop()? else { return Ok(None) };
            match check(&request, &self.limits) {
                Ok(work) => return Ok(self.take(&request, work)),
                Err(status) => {
                    self.refused += 1;
                    self.answered = true;
                    self.ring.push(&Response { id: request.id(), operation: request.operation(), status });
                }
            }
        }
        Ok(None)
    }

    #[inline]
    fn take(&mut self, request: &Request, work: Work) -> Option<Task> {
        // The ring never hands out more requests than it has slots, answered ones not counted.
        let slot = self.free.pop()?;
        self.jobs[slot as usize] = Job { id: request.id(), operation: request.operation(), live: true };
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
        let others = self.under_way() - 1;
        Some(match self.order.next(others)? {
            Step::Flush(job) => flush(job),
            Step::Write(job, t) => Task { job, op: Op::Write, sector: t.sector, segments: t.segments },
        })
    }

    /// A task is over. What it mapped must be unmapped before: the answer gives the pages back to the front end.
    #[inline]
    pub fn complete(&mut self, job: JobId, status: Status) {
        let Some(status) = self.order.complete(job, status) else { return };
        let known = self.jobs.get_mut(job.0 as usize).filter(|j| j.live);
        debug_assert!(known.is_some(), "{job:?} completed twice");
        let Some(entry) = known else { return };
        entry.live = false;
        self.ring.push(&Response { id: entry.id, operation: entry.operation, status });
        self.free.push(job.0);
        self.answered = true;
    }

    /// Publishes the answers, if there are any; says whether the front end wants to be woken for them.
    #[inline]
    pub fn commit(&mut self) -> Notify {
        if !std::mem::take(&mut self.answered) {
            return Notify::No;
        }
        self.ring.commit()
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

fn flush(job: JobId) -> Task {
    Task { job, op: Op::Flush, sector: 0, segments: Segments::new() }
}

#[cfg(test)]
mod tests;
