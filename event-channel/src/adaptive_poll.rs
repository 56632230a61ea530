//! Adaptive polling: whether to poll the ring for a while before sleeping until the next event.
//!
//! Where the peer answers from another core, polling is cheaper than a wake-up. Where the peer shares this core, or
//! rarely has anything, polling only keeps the peer and all other threads from running. So a poll that finds nothing
//! makes the next waits skip polling, twice as many each time; a poll that finds something resets that.

/// The longest run of waits that skip polling.
const MAX_SKIPPED: u32 = 64;

/// Decides for each wait whether to poll first, from what earlier polls found.
///
/// ```
/// use event_channel::AdaptivePoll;
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

    /// Records that the poll found work.
    #[inline]
    pub fn hit(&mut self) {
        self.penalty = 0;
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
}
