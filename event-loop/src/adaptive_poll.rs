//! Adaptive polling: whether to poll the ring for a while before sleeping until the next event.
//!
//! Where the peer answers from another core, polling is cheaper than a wake-up. Where the peer shares this core, or
//! rarely has anything, polling only keeps the peer and all other threads from running. So a poll that finds nothing
//! makes the next waits skip polling, twice as many each time; a poll that finds something resets that. A poll that lasted
//! much longer than it was to has lost its core to another thread meanwhile: there are more threads than cores, and as many
//! waits as ever skip polling. Time is an argument.

use core::time::Duration;

/// The longest run of waits that skip polling.
const MAX_SKIPPED: u32 = 64;
/// A poll that lasted so long has lost its core: it was to last some 20 us, and a look takes one or two.
const STOLEN: Duration = Duration::from_millis(1);

/// Decides for each wait whether to poll first, from what earlier polls found.
///
/// ```
/// use event_loop::AdaptivePoll;
///
/// let mut adaptive = AdaptivePoll::default();
/// assert!(adaptive.should_poll());
/// adaptive.miss();
/// assert!(!adaptive.should_poll(), "the wait after a miss sleeps at once");
/// assert!(adaptive.should_poll());
/// adaptive.hit();
/// assert!(adaptive.should_poll());
/// ```
#[derive(Clone, Copy, Debug, Default)]
pub struct AdaptivePoll {
    skip: u32,
    penalty: u32,
}

impl AdaptivePoll {
    /// Whether this wait should poll before it sleeps. Call it once a wait: each call counts as one.
    #[inline]
    pub fn should_poll(&mut self) -> bool {
        let poll = self.skip == 0;
        self.skip = self.skip.saturating_sub(1);
        poll
    }

    /// Records that the poll found work, or that work came as soon as polling had ended: the next waits poll.
    #[inline]
    pub fn hit(&mut self) {
        self.skip = 0;
        self.penalty = 0;
    }

    /// Records whether the poll found work, and how long it lasted.
    #[inline]
    pub fn ended(&mut self, found: bool, lasted: Duration) {
        if !found && lasted >= STOLEN {
            self.penalty = MAX_SKIPPED;
        }
        if found { self.hit() } else { self.miss() }
    }

    /// Records that the poll found nothing and the thread slept after all.
    #[inline]
    pub fn miss(&mut self) {
        self.penalty = (2 * self.penalty + 1).min(MAX_SKIPPED);
        self.skip = self.penalty;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn adaptive_poll_after_hits_always_polls() {
        let mut adaptive = AdaptivePoll::default();
        assert!((0..100).all(|_| {
            let poll = adaptive.should_poll();
            adaptive.hit();
            poll
        }));
    }

    #[test]
    fn adaptive_poll_after_misses_backs_off_until_a_hit() {
        let mut adaptive = AdaptivePoll::default();
        let polls = (0..10_000)
            .filter(|_| {
                let poll = adaptive.should_poll();
                if poll {
                    adaptive.miss();
                }
                poll
            })
            .count();
        assert!((150..170).contains(&polls), "{polls}");
        while !adaptive.should_poll() {}
        adaptive.hit();
        assert!(adaptive.should_poll());
    }

    #[test]
    fn adaptive_poll_that_lost_its_core_skips_most_waits_at_once() {
        let mut adaptive = AdaptivePoll::default();
        assert!(adaptive.should_poll());
        adaptive.ended(false, STOLEN);
        assert_eq!((0..MAX_SKIPPED).filter(|_| adaptive.should_poll()).count(), 0);
        assert!(adaptive.should_poll());
        // A poll that found work was worth it, however long it took.
        adaptive.ended(true, STOLEN);
        assert!(adaptive.should_poll());
        adaptive.ended(false, STOLEN / 2);
        assert!(!adaptive.should_poll() && adaptive.should_poll());
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

        /// Whatever earlier waits were like: of waits in which nothing comes few are polled, and after work all are.
        #[test]
        fn adaptive_poll_learns_whatever_was_before(before in prop::collection::vec((any::<bool>(), 0u64..3), 0..300)) {
            let mut adaptive = AdaptivePoll::default();
            for (found, millis) in before {
                if adaptive.should_poll() {
                    adaptive.ended(found, Duration::from_millis(millis));
                }
            }
            let mut idle = adaptive;
            let polled = (0..1000).filter(|_| {
                let polls = idle.should_poll();
                if polls {
                    idle.ended(false, Duration::ZERO);
                }
                polls
            });
            prop_assert!(polled.count() <= 7 + 1000 / MAX_SKIPPED as usize);
            adaptive.hit();
            for _ in 0..100 {
                prop_assert!(adaptive.should_poll());
                adaptive.hit();
            }
        }
    }
}
