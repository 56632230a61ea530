//! The requests of one ring that wait for their time under the limits of its disk: reads and writes, each in their order.
//!
//! A lane reserves time for its first requests only, [`TRAIN`] of it or one request, and for the next ones once these have started. So
//! all lanes of a disk's rings, and of a group's disks, take turns, however many requests wait in each; and a ring's thread
//! wakes up once for each turn.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::limiter::{Cost, Throttle};
use crate::request::{RequestTable, Tag};

/// How long the turn of a lane is that has many small requests: what a thread that sleeps is late by anyway.
pub const TRAIN: Duration = Duration::from_millis(1);

/// A request that waits.
#[derive(Clone, Copy, Debug)]
struct Waiting {
    tag: Tag,
    cost: Cost,
    /// When it may start, since the limits hold; of those that have reserved their time.
    due: Duration,
}

/// Reads or writes that wait, the oldest first.
#[derive(Debug, Default)]
struct Lane {
    waiting: VecDeque<Waiting>,
    /// How many of them, from the first one on, have reserved their time.
    reserved: usize,
}

impl Lane {
    /// Appends those that may start at `now` to `tags`.
    fn release(&mut self, throttle: &Throttle, now: Duration, tags: &mut Vec<Tag>) {
        while self.reserved > 0 && self.waiting.front().is_some_and(|first| first.due <= now) {
            self.start_first(tags);
        }
        if self.reserved > 0 || self.waiting.is_empty() {
            return;
        }
        let mut limiter = throttle.lock();
        while let Some(next) = self.waiting.get_mut(self.reserved) {
            let due = limiter.due(next.cost, now);
            next.due = due;
            // Of the turn's first one, which this one may be.
            if due.saturating_sub(self.waiting[0].due) >= TRAIN {
                return;
            }
            limiter.reserve(self.waiting[self.reserved].cost, now);
            self.reserved += 1;
            if due <= now {
                self.start_first(tags);
            }
        }
    }

    fn start_first(&mut self, tags: &mut Vec<Tag>) {
        self.reserved -= 1;
        tags.extend(self.waiting.pop_front().map(|first| first.tag));
    }

    /// When [`Lane::release`] is to be called next: when the last one of the turn is due. `None` if nothing waits.
    fn due(&self) -> Option<Duration> {
        match self.reserved {
            0 if self.waiting.is_empty() => None,
            // It is to reserve its time at once.
            0 => Some(Duration::ZERO),
            reserved => Some(self.waiting[reserved - 1].due),
        }
    }

    /// Appends all to `tags`, which take the time that they have not reserved yet.
    fn release_all(&mut self, throttle: Option<&Throttle>, now: Instant, tags: &mut Vec<Tag>) {
        if let Some(throttle) = throttle {
            let now = throttle.since(now);
            let mut limiter = throttle.lock();
            for Waiting { cost, .. } in self.waiting.range(self.reserved..) {
                limiter.reserve(*cost, now);
            }
        }
        self.reserved = 0;
        tags.extend(self.waiting.drain(..).map(|waiting| waiting.tag));
    }
}

/// The requests of a ring that wait.
///
/// Requests that were taken from the ring are [put in](Lanes::put), and those whose time has come are [released](Lanes::release);
/// the next ones are due [then](Lanes::due).
#[derive(Debug, Default)]
pub struct Lanes {
    throttle: Option<Arc<Throttle>>,
    /// Reads, and writes.
    lanes: [Lane; 2],
}

impl Lanes {
    /// Empty ones, of a ring whose disk has these limits.
    pub fn new(throttle: Option<Arc<Throttle>>) -> Lanes {
        Lanes { throttle, lanes: Default::default() }
    }

    /// Sets the limits from now on, which hold for those that wait too.
    pub fn set_throttle(&mut self, throttle: Option<Arc<Throttle>>) {
        self.throttle = throttle;
        self.lanes.iter_mut().for_each(|lane| lane.reserved = 0);
    }

    /// Whether requests are to be put in before they start: there are limits, or requests that wait.
    #[inline]
    pub fn is_active(&self) -> bool {
        self.throttle.is_some() || self.has_waiting()
    }

    /// Whether requests wait.
    #[inline]
    pub fn has_waiting(&self) -> bool {
        self.lanes.iter().any(|lane| !lane.waiting.is_empty())
    }

    /// Puts in the requests of `tags` that are limited; those that are not stay there.
    pub fn put(&mut self, requests: &RequestTable, tags: &mut Vec<Tag>) {
        tags.retain(|tag| match Cost::of(&requests[*tag]) {
            Some(cost) => {
                let waiting = Waiting { tag: *tag, cost, due: Duration::ZERO };
                self.lanes[usize::from(cost.write)].waiting.push_back(waiting);
                false
            }
            None => true,
        });
    }

    /// Appends the requests that may start at `now` to `tags`.
    pub fn release(&mut self, now: Instant, tags: &mut Vec<Tag>) {
        let Some(throttle) = &self.throttle else { return self.release_all(now, tags) };
        let now = throttle.since(now);
        for lane in &mut self.lanes {
            lane.release(throttle, now, tags);
        }
    }

    /// Appends all requests to `tags`, of a ring that is not served any longer. Their cost counts: who connects again waits for it.
    pub fn release_all(&mut self, now: Instant, tags: &mut Vec<Tag>) {
        let throttle = self.throttle.as_deref();
        self.lanes.iter_mut().for_each(|lane| lane.release_all(throttle, now, tags));
    }

    /// Forgets all requests, which are never carried out.
    pub fn clear(&mut self) {
        self.lanes = Default::default();
    }

    /// When [`Lanes::release`] is to be called next; `None` if nothing waits.
    pub fn due(&self) -> Option<Instant> {
        let throttle = self.throttle.as_deref()?;
        let due = self.lanes.iter().filter_map(Lane::due).min()?;
        Some(throttle.instant(due))
    }
}

#[cfg(test)]
mod tests;
