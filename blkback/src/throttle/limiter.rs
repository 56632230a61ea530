//! The token buckets of limits, as a value: each request reserves its tokens, and is told when it may start.
//!
//! A request may start once each of its buckets has its tokens, or is full where it has space for fewer: so a large one is late,
//! never starved. The tokens are taken when that time is told, into debt, so that whoever asks next gets a later time: the times of
//! all rings are in the order in which they asked. What starts in a while is more than its limit by what a bucket holds
//! ([`BURST`] of the limit, or what `-max` says), or by one request if that is more.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use event_loop::TokenBucket;

use super::limits::{IoLimits, Limit, LimitKind};
use crate::request::{Operation, PendingRequest};

/// How long a limit that was not used is saved up for: a ring's thread that is woken so much later loses nothing. 1 % of five seconds.
pub const BURST: Duration = Duration::from_millis(50);

/// Tokens of one request, so that a part of one can be counted.
const REQUEST: u64 = 1000;

/// What a new limit has saved up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Credit {
    /// As if nothing had been used for long.
    Full,
    /// Nothing: for limits that take the place of others.
    None,
}

/// What a request costs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cost {
    /// It writes or discards, rather than reads.
    pub write: bool,
    /// Bytes that are read or written; 0 for a discard, which counts as one request, as in QEMU.
    pub bytes: u64,
}

impl Cost {
    /// The cost of a request; `None` if it is not limited: a flush, which has nothing to transfer and others wait for.
    #[inline]
    pub fn of(request: &PendingRequest) -> Option<Cost> {
        match request.operation() {
            Operation::Flush => None,
            Operation::Read => Some(Cost { write: false, bytes: request.bytes() as u64 }),
            Operation::Write => Some(Cost { write: true, bytes: request.bytes() as u64 }),
            Operation::Discard => Some(Cost { write: true, bytes: 0 }),
        }
    }
}

/// A bucket, and how much is in it when it is full.
#[derive(Clone, Debug)]
struct Bucket {
    tokens: TokenBucket,
    full: u64,
}

impl Bucket {
    fn new(rate: u64, full: u64, credit: Credit, now: Duration) -> Bucket {
        let mut tokens = TokenBucket::new(rate, full, now);
        if credit == Credit::None {
            tokens.spend(full, now);
        }
        Bucket { tokens, full }
    }

    /// How long until so many tokens, or as many as it holds, are there.
    fn wait(&mut self, tokens: u64, now: Duration) -> Duration {
        // Never `None`: the rate is not 0, and no more is asked for than it holds.
        self.tokens.wait(tokens.min(self.full), now).unwrap_or_default()
    }
}

/// One limit: the bucket of its average, and that of its `-max`.
#[derive(Clone, Debug)]
struct Buckets {
    kind: LimitKind,
    average: Bucket,
    max: Option<Bucket>,
}

impl Buckets {
    /// `None` without a limit.
    fn new(kind: LimitKind, limit: Limit, credit: Credit, now: Duration) -> Option<Buckets> {
        let Limit { average, max, max_length } = limit;
        let unit = if kind.counts_bytes() { 1 } else { REQUEST };
        let tokens = |rate: u64| rate.saturating_mul(unit);
        let burst = |rate: u64| (u128::from(tokens(rate)) * BURST.as_millis() / 1000) as u64;
        if average == 0 {
            return None;
        }
        let extra = tokens(max.saturating_sub(average)).saturating_mul(max_length.max(1));
        let full = burst(average).max(extra);
        Some(Buckets {
            kind,
            average: Bucket::new(tokens(average), full, credit, now),
            max: (max > average).then(|| Bucket::new(tokens(max), burst(max), credit, now)),
        })
    }

    fn wait(&mut self, tokens: u64, now: Duration) -> Duration {
        let wait = self.average.wait(tokens, now);
        self.max.as_mut().map_or(wait, |max| wait.max(max.wait(tokens, now)))
    }

    fn spend(&mut self, tokens: u64, now: Duration) {
        let buckets = [Some(&mut self.average), self.max.as_mut()];
        buckets.into_iter().flatten().for_each(|bucket| bucket.tokens.spend(tokens, now));
    }
}

/// The buckets of a disk's limits, or of those of a group. Times are since an epoch of the caller's.
///
/// ```
/// use std::time::Duration;
/// use blkback::throttle::limiter::Cost;
/// use blkback::throttle::{Credit, IoLimits, Limit, LimitKind, Limiter};
///
/// let limits = IoLimits::default().with(LimitKind::IopsTotal, Limit { average: 2, ..Limit::default() });
/// let mut limiter = Limiter::new(&limits, Credit::Full, Duration::ZERO);
/// let read = Cost { write: false, bytes: 4096 };
/// let times = [(); 3].map(|()| limiter.reserve(read, Duration::ZERO));
/// assert_eq!(times, [0, 500, 1000].map(Duration::from_millis));
/// ```
#[derive(Clone, Debug)]
pub struct Limiter {
    buckets: Vec<Buckets>,
    iops_size: u64,
}

impl Limiter {
    /// Makes the buckets of limits.
    pub fn new(limits: &IoLimits, credit: Credit, now: Duration) -> Limiter {
        let buckets = LimitKind::ALL.iter();
        let buckets = buckets.filter_map(|kind| Buckets::new(*kind, limits.of(*kind), credit, now)).collect();
        Limiter { buckets, iops_size: limits.iops_size }
    }

    /// The time at which a request may start that reserves it now: `now`, or later.
    pub fn due(&mut self, cost: Cost, now: Duration) -> Duration {
        let requests = self.requests(cost.bytes);
        let counted = self.buckets.iter_mut().filter(|buckets| buckets.kind.counts(cost.write));
        let waits = counted.map(|buckets| match buckets.kind.counts_bytes() {
            true if cost.bytes == 0 => Duration::ZERO,
            true => buckets.wait(cost.bytes, now),
            false => buckets.wait(requests, now),
        });
        now.saturating_add(waits.max().unwrap_or_default())
    }

    /// Takes the tokens of a request, and returns the time at which it may start, as [`Limiter::due`] says.
    pub fn reserve(&mut self, cost: Cost, now: Duration) -> Duration {
        let due = self.due(cost, now);
        let requests = self.requests(cost.bytes);
        for buckets in self.buckets.iter_mut().filter(|buckets| buckets.kind.counts(cost.write)) {
            buckets.spend(if buckets.kind.counts_bytes() { cost.bytes } else { requests }, now);
        }
        due
    }

    /// How many requests one of so many bytes counts as, in tokens.
    fn requests(&self, bytes: u64) -> u64 {
        match self.iops_size {
            0 => REQUEST,
            size => bytes.saturating_mul(REQUEST).div_ceil(size).max(REQUEST),
        }
    }
}

/// A limiter that several rings share.
#[derive(Debug)]
pub struct Throttle {
    limits: IoLimits,
    epoch: Instant,
    limiter: Mutex<Limiter>,
}

impl Throttle {
    /// Makes a limiter of limits that hold from `now` on.
    pub fn new(limits: IoLimits, credit: Credit, now: Instant) -> Arc<Throttle> {
        let limiter = Mutex::new(Limiter::new(&limits, credit, Duration::ZERO));
        Arc::new(Throttle { limits, epoch: now, limiter })
    }

    /// The limits.
    pub fn limits(&self) -> &IoLimits {
        &self.limits
    }

    /// The time since the limits hold.
    pub(super) fn since(&self, now: Instant) -> Duration {
        now.saturating_duration_since(self.epoch)
    }

    /// The instant of a time since the limits hold.
    pub(super) fn instant(&self, at: Duration) -> Instant {
        // Who waits longer than a century may look again before.
        let at = at.min(Duration::from_secs(100 * 365 * 86_400));
        self.epoch + at
    }

    /// Locked for a batch of requests.
    pub(super) fn lock(&self) -> MutexGuard<'_, Limiter> {
        self.limiter.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests;
