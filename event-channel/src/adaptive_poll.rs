//! Whether looking for a while before sleeping pays: a value that learns from what happened.
//!
//! Where the peer answers from another core, looking is cheaper than being woken. Where it shares our core, or
//! rarely has anything, looking only keeps it, and everybody else, from running. So a miss makes us skip looking
//! for some of the next waits, twice as many each time; a hit makes us look always again.

/// Most waits in a row that go to sleep at once.
const MOST: u32 = 64;

/// Learns whether to look.
#[derive(Clone, Copy, Debug, Default)]
pub struct AdaptivePoll {
    skip: u32,
    penalty: u32,
}

impl AdaptivePoll {
    /// Whether to look in this wait; asked once a wait.
    #[inline]
    pub fn worth(&mut self) -> bool {
        let worth = self.skip == 0;
        self.skip = self.skip.saturating_sub(1);
        worth
    }

    /// Looking found something.
    #[inline]
    pub fn hit(&mut self) {
        self.penalty = 0;
    }

    /// Looking found nothing, and we slept after all.
    #[inline]
    pub fn missed(&mut self) {
        self.penalty = (2 * self.penalty + 1).min(MOST);
        self.skip = self.penalty;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hits_keep_us_looking() {
        let mut spin = AdaptivePoll::default();
        assert!((0..100).all(|_| {
            let worth = spin.worth();
            spin.hit();
            worth
        }));
    }

    #[test]
    fn misses_make_us_look_ever_less_and_a_hit_makes_it_good() {
        let mut spin = AdaptivePoll::default();
        let looks = (0..10_000)
            .filter(|_| {
                let worth = spin.worth();
                if worth {
                    spin.missed();
                }
                worth
            })
            .count();
        assert!((150..170).contains(&looks), "{looks}");
        while !spin.worth() {}
        spin.hit();
        assert!(spin.worth());
    }
}
