//! Barriers: a request that waits for all before it, and all after it wait for.
//!
//! Requests are otherwise carried out in any order, and a flush concerns only writes already answered: the engine's
//! flush covers those whatever else is in flight. A barrier is four steps: drain, flush, write, flush. While
//! one is in flight nothing is taken from the ring, so that the ring itself is the queue behind it.

use crate::check::Transfer;
use crate::queue::JobId;
use ring_abi::blkif::Status;

/// The barrier in flight, if there is one.
#[derive(Debug, Default)]
pub struct Order {
    phase: Phase,
}

#[derive(Debug, Default)]
enum Phase {
    #[default]
    Open,
    /// Waits for all jobs but the barrier's own.
    Drain(JobId, Option<Transfer>),
    /// The flush before is in flight.
    Before(JobId, Option<Transfer>),
    /// The write waits to be taken.
    Write(JobId, Transfer),
    /// The write is in flight.
    Writing(JobId),
    /// The flush after waits to be taken.
    Flush(JobId),
    /// The flush after is in flight.
    After(JobId),
}

/// What the barrier wants done now.
#[derive(Debug, PartialEq, Eq)]
pub enum Step {
    /// Flush for this job.
    Flush(JobId),
    /// Write for this job.
    Write(JobId, Transfer),
}

impl Order {
    /// Whether requests may be taken from the ring.
    #[inline]
    pub fn is_open(&self) -> bool {
        matches!(self.phase, Phase::Open)
    }

    /// Starts a barrier; none may be in flight.
    pub fn begin(&mut self, job: JobId, transfer: Option<Transfer>) {
        debug_assert!(self.is_open(), "a barrier inside a barrier");
        self.phase = Phase::Drain(job, transfer);
    }

    /// The next step, when it may be taken. `others` are jobs in flight besides the barrier's own.
    pub fn next(&mut self, others: usize) -> Option<Step> {
        match std::mem::take(&mut self.phase) {
            Phase::Drain(job, transfer) if others == 0 => {
                self.phase = Phase::Before(job, transfer);
                Some(Step::Flush(job))
            }
            Phase::Write(job, transfer) => {
                self.phase = Phase::Writing(job);
                Some(Step::Write(job, transfer))
            }
            Phase::Flush(job) => {
                self.phase = Phase::After(job);
                Some(Step::Flush(job))
            }
            waiting => {
                self.phase = waiting;
                None
            }
        }
    }

    /// A job's step is over. `Some` is the status to answer; `None` means that the barrier goes on.
    #[inline]
    pub fn complete(&mut self, job: JobId, status: Status) -> Option<Status> {
        if self.is_open() || self.job() != Some(job) { Some(status) } else { self.advance(job, status) }
    }

    fn advance(&mut self, job: JobId, status: Status) -> Option<Status> {
        let next = match std::mem::take(&mut self.phase) {
            _ if status != Status::OKAY => return Some(status),
            Phase::Before(_, Some(transfer)) => Phase::Write(job, transfer),
            Phase::Writing(_) => Phase::Flush(job),
            _ => return Some(status),
        };
        self.phase = next;
        None
    }

    fn job(&self) -> Option<JobId> {
        match &self.phase {
            Phase::Open => None,
            Phase::Drain(job, _) | Phase::Before(job, _) | Phase::Write(job, _) => Some(*job),
            Phase::Writing(job) | Phase::Flush(job) | Phase::After(job) => Some(*job),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::check::Segments;

    const JOB: JobId = JobId(7);

    fn transfer() -> Transfer {
        Transfer { sector: 8, segments: Segments::new() }
    }

    #[test]
    fn a_barrier_drains_flushes_writes_and_flushes() {
        let mut order = Order::default();
        order.begin(JOB, Some(transfer()));
        assert_eq!(order.next(2), None);
        assert_eq!(order.complete(JobId(1), Status::ERROR), Some(Status::ERROR));
        assert_eq!(order.next(0), Some(Step::Flush(JOB)));
        assert_eq!(order.next(0), None);
        assert_eq!(order.complete(JOB, Status::OKAY), None);
        assert_eq!(order.next(0), Some(Step::Write(JOB, transfer())));
        assert_eq!(order.complete(JOB, Status::OKAY), None);
        assert_eq!(order.next(0), Some(Step::Flush(JOB)));
        assert!(!order.is_open());
        assert_eq!(order.complete(JOB, Status::OKAY), Some(Status::OKAY));
        assert!(order.is_open());
    }

    #[test]
    fn a_barrier_without_data_is_one_flush() {
        let mut order = Order::default();
        order.begin(JOB, None);
        assert_eq!(order.next(0), Some(Step::Flush(JOB)));
        assert_eq!(order.complete(JOB, Status::OKAY), Some(Status::OKAY));
        assert!(order.is_open());
    }

    #[test]
    fn a_failed_step_ends_the_barrier() {
        for steps in 1..=3 {
            let mut order = Order::default();
            order.begin(JOB, Some(transfer()));
            for step in 1..=steps {
                assert!(order.next(0).is_some());
                let status = if step == steps { Status::ERROR } else { Status::OKAY };
                assert_eq!(order.complete(JOB, status), (step == steps).then_some(Status::ERROR));
            }
            assert!(order.is_open());
        }
    }
}
