//! Barriers: a request that starts after all earlier ones are complete, and completes before any later one starts.
//!
//! Other requests are carried out in any order, and a flush covers only writes already answered, which the engine's
//! flush does whatever else is in flight. A barrier is four steps: drain, flush, write, flush. While one is in
//! flight no request is taken from the ring, so later requests wait in the ring itself.

use crate::request::{Operation, Tag};
use ring_abi::blkif::Status;

/// The barrier in flight, if there is one.
#[derive(Debug, Default)]
pub struct Order {
    phase: Phase,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Phase {
    #[default]
    Open,
    /// Waits for all other requests to complete. `data` says whether there is a write to follow.
    Drain { tag: Tag, data: bool },
    /// The flush before the write is in flight.
    Before { tag: Tag, data: bool },
    /// The write is ready to be taken.
    Write(Tag),
    /// The write is in flight.
    Writing(Tag),
    /// The flush after the write is ready to be taken.
    Flush(Tag),
    /// The flush after the write is in flight.
    After(Tag),
}

impl Order {
    /// Whether requests may be taken from the ring: no barrier is in flight.
    #[inline]
    pub fn is_open(&self) -> bool {
        self.phase == Phase::Open
    }

    /// Starts a barrier, with `data` to write or without; none may be in flight.
    pub fn begin(&mut self, tag: Tag, data: bool) {
        debug_assert!(self.is_open(), "a second barrier while one is in flight");
        self.phase = Phase::Drain { tag, data };
    }

    /// Returns the barrier and what its next step is, if that may start now. `others` is the number of other requests in
    /// flight.
    pub fn next(&mut self, others: usize) -> Option<(Tag, Operation)> {
        let (next, step) = match self.phase {
            Phase::Drain { tag, data } if others == 0 => {
                (Phase::Before { tag, data }, (tag, Operation::Flush))
            }
            Phase::Write(tag) => (Phase::Writing(tag), (tag, Operation::Write)),
            Phase::Flush(tag) => (Phase::After(tag), (tag, Operation::Flush)),
            _ => return None,
        };
        self.phase = next;
        Some(step)
    }

    /// Records that a request's step is complete. Returns the status of its response; `None` if the barrier has
    /// further steps.
    #[inline]
    pub fn complete(&mut self, tag: Tag, status: Status) -> Option<Status> {
        if self.is_open() || self.tag() != Some(tag) { Some(status) } else { self.advance(tag, status) }
    }

    fn advance(&mut self, tag: Tag, status: Status) -> Option<Status> {
        self.phase = match self.phase {
            Phase::Before { data: true, .. } if status == Status::OKAY => Phase::Write(tag),
            Phase::Writing(_) if status == Status::OKAY => Phase::Flush(tag),
            _ => Phase::Open,
        };
        self.is_open().then_some(status)
    }

    fn tag(&self) -> Option<Tag> {
        match self.phase {
            Phase::Open => None,
            Phase::Drain { tag, .. } | Phase::Before { tag, .. } => Some(tag),
            Phase::Write(tag) | Phase::Writing(tag) | Phase::Flush(tag) | Phase::After(tag) => Some(tag),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TAG: Tag = Tag(7);

    #[test]
    fn barrier_with_data_drains_flushes_writes_and_flushes() {
        let mut order = Order::default();
        order.begin(TAG, true);
        assert_eq!(order.next(2), None);
        assert_eq!(order.complete(Tag(1), Status::ERROR), Some(Status::ERROR));
        assert_eq!(order.next(0), Some((TAG, Operation::Flush)));
        assert_eq!(order.next(0), None);
        assert_eq!(order.complete(TAG, Status::OKAY), None);
        assert_eq!(order.next(0), Some((TAG, Operation::Write)));
        assert_eq!(order.complete(TAG, Status::OKAY), None);
        assert_eq!(order.next(0), Some((TAG, Operation::Flush)));
        assert!(!order.is_open());
        assert_eq!(order.complete(TAG, Status::OKAY), Some(Status::OKAY));
        assert!(order.is_open());
    }

    #[test]
    fn barrier_without_data_is_one_flush() {
        let mut order = Order::default();
        order.begin(TAG, false);
        assert_eq!(order.next(0), Some((TAG, Operation::Flush)));
        assert_eq!(order.complete(TAG, Status::OKAY), Some(Status::OKAY));
        assert!(order.is_open());
    }

    #[test]
    fn barrier_with_failed_step_ends() {
        for steps in 1..=3 {
            let mut order = Order::default();
            order.begin(TAG, true);
            for step in 1..=steps {
                assert!(order.next(0).is_some());
                let status = if step == steps { Status::ERROR } else { Status::OKAY };
                assert_eq!(order.complete(TAG, status), (step == steps).then_some(Status::ERROR));
            }
            assert!(order.is_open());
        }
    }
}
