//! When a bridge looks at all its ports though nobody told it to: a safety net, once a second while any has something to do, and
//! more and more rarely while none has. Time is an argument.

use std::time::{Duration, Instant};

/// Time between two ticks of a bridge with something to do.
pub(crate) const TICK: Duration = Duration::from_secs(1);
/// The longest time between two ticks: a wake-up each second of each of many idle bridges would cost more than all else
/// that they do.
pub(crate) const IDLE_TICK: Duration = Duration::from_secs(16);

/// The time of the next tick.
#[derive(Clone, Debug)]
pub(crate) struct Tick {
    next: Instant,
    interval: Duration,
    /// Any port had something to do since the last tick.
    worked: bool,
}

impl Tick {
    pub(crate) fn new(now: Instant) -> Tick {
        Tick { next: now + TICK, interval: TICK, worked: true }
    }

    /// Records that a port had something to do, or has: the next tick comes within a second.
    #[inline]
    pub(crate) fn worked(&mut self, now: Instant) {
        self.worked = true;
        if self.interval > TICK {
            self.interval = TICK;
            self.next = self.next.min(now + TICK);
        }
    }

    /// Whether it is time; the one after that is set then.
    #[inline]
    pub(crate) fn is_due(&mut self, now: Instant) -> bool {
        if now < self.next {
            return false;
        }
        let worked = std::mem::take(&mut self.worked);
        self.interval = if worked { TICK } else { (2 * self.interval).min(IDLE_TICK) };
        self.next = now + self.interval;
        true
    }

    pub(crate) fn next(&self) -> Instant {
        self.next
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn ticks_of_an_idle_bridge_become_rare() {
        let mut now = Instant::now();
        let mut tick = Tick::new(now);
        let mut pauses = Vec::new();
        for _ in 0..8 {
            pauses.push(tick.next().duration_since(now).as_secs());
            now = tick.next();
            assert!(tick.is_due(now) && !tick.is_due(now));
        }
        assert_eq!(pauses, [1, 1, 2, 4, 8, 16, 16, 16]);
        tick.worked(now + TICK);
        assert_eq!(tick.next(), now + 2 * TICK);
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn tick_comes_within_a_second_of_work(steps in prop::collection::vec((0u64..20_000, any::<bool>()), 1..200)) {
            let mut now = Instant::now();
            let mut tick = Tick::new(now);
            for (millis, works) in steps {
                now += Duration::from_millis(millis);
                tick.is_due(now);
                prop_assert!(tick.next() > now && tick.next() <= now + IDLE_TICK);
                if works {
                    tick.worked(now);
                    prop_assert!(tick.next() <= now + TICK);
                }
            }
        }
    }
}
