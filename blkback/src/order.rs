//! Barriers: a request that starts after all earlier ones are complete, and completes before any later one starts.
//!
//! Other requests are carried out in any order, and a flush covers only writes already answered, which the engine's
//! flush does whatever else is in flight. A barrier is four steps: drain, flush, write, flush. While one is in
//! flight no request is taken from the ring, so later requests wait in the ring itself.

use crate::check::ReadWrite;
use crate::disk_request::Tag;
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
    /// Waits for all other requests to complete.
    Drain(Tag, Option<ReadWrite>),
    /// The flush before the write is in flight.
    Before(Tag, Option<ReadWrite>),
    /// The write is ready to be taken.
    Write(Tag, ReadWrite),
    /// The write is in flight.
    Writing(Tag),
    /// The flush after the write is ready to be taken.
    Flush(Tag),
    /// The flush after the write is in flight.
    After(Tag),
}

/// The next step of the barrier in flight.
#[derive(Debug, PartialEq, Eq)]
pub enum BarrierStep {
    /// Flush the disk.
    Flush(Tag),
    /// Write the barrier's data.
    Write(Tag, ReadWrite),
}

impl Order {
    /// Whether requests may be taken from the ring: no barrier is in flight.
    #[inline]
    pub fn is_open(&self) -> bool {
        matches!(self.phase, Phase::Open)
    }

    /// Starts a barrier; none may be in flight.
    pub fn begin(&mut self, tag: Tag, data: Option<ReadWrite>) {
        debug_assert!(self.is_open(), "a second barrier while one is in flight");
        self.phase = Phase::Drain(tag, data);
    }

    /// Returns the next step if it may start now. `others` is the number of other requests in flight.
    pub fn next(&mut self, others: usize) -> Option<BarrierStep> {
        match std::mem::take(&mut self.phase) {
            Phase::Drain(tag, data) if others == 0 => {
                self.phase = Phase::Before(tag, data);
                Some(BarrierStep::Flush(tag))
            }
            Phase::Write(tag, data) => {
                self.phase = Phase::Writing(tag);
                Some(BarrierStep::Write(tag, data))
            }
            Phase::Flush(tag) => {
                self.phase = Phase::After(tag);
                Some(BarrierStep::Flush(tag))
            }
            waiting => {
                self.phase = waiting;
                None
            }
        }
    }

    /// Records that a request's step is complete. Returns the status of its response; `None` if the barrier has
    /// further steps.
    #[inline]
    pub fn complete(&mut self, tag: Tag, status: Status) -> Option<Status> {
        if self.is_open() || self.tag() != Some(tag) { Some(status) } else { self.advance(tag, status) }
    }

    fn advance(&mut self, tag: Tag, status: Status) -> Option<Status> {
        let next = match std::mem::take(&mut self.phase) {
            _ if status != Status::OKAY => return Some(status),
            Phase::Before(_, Some(data)) => Phase::Write(tag, data),
            Phase::Writing(_) => Phase::Flush(tag),
            _ => return Some(status),
        };
        self.phase = next;
        None
    }

    fn tag(&self) -> Option<Tag> {
        match &self.phase {
            Phase::Open => None,
            Phase::Drain(tag, _) | Phase::Before(tag, _) | Phase::Write(tag, _) => Some(*tag),
            Phase::Writing(tag) | Phase::Flush(tag) | Phase::After(tag) => Some(*tag),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::check::Segments;

    const TAG: Tag = Tag(7);

    fn data() -> ReadWrite {
        ReadWrite { sector: 8, segments: Segments::new() }
    }

    #[test]
    fn barrier_with_data_drains_flushes_writes_and_flushes() {
        let mut order = Order::default();
        order.begin(TAG, Some(data()));
        assert_eq!(order.next(2), None);
        assert_eq!(order.complete(Tag(1), Status::ERROR), Some(Status::ERROR));
        assert_eq!(order.next(0), Some(BarrierStep::Flush(TAG)));
        assert_eq!(order.next(0), None);
        assert_eq!(order.complete(TAG, Status::OKAY), None);
        assert_eq!(order.next(0), Some(BarrierStep::Write(TAG, data())));
        assert_eq!(order.complete(TAG, Status::OKAY), None);
        assert_eq!(order.next(0), Some(BarrierStep::Flush(TAG)));
        assert!(!order.is_open());
        assert_eq!(order.complete(TAG, Status::OKAY), Some(Status::OKAY));
        assert!(order.is_open());
    }

    #[test]
    fn barrier_without_data_is_one_flush() {
        let mut order = Order::default();
        order.begin(TAG, None);
        assert_eq!(order.next(0), Some(BarrierStep::Flush(TAG)));
        assert_eq!(order.complete(TAG, Status::OKAY), Some(Status::OKAY));
        assert!(order.is_open());
    }

    #[test]
    fn barrier_with_failed_step_ends() {
        for steps in 1..=3 {
            let mut order = Order::default();
            order.begin(TAG, Some(data()));
            for step in 1..=steps {
                assert!(order.next(0).is_some());
                let status = if step == steps { Status::ERROR } else { Status::OKAY };
                assert_eq!(order.complete(TAG, status), (step == steps).then_some(Status::ERROR));
            }
            assert!(order.is_open());
        }
    }
}
