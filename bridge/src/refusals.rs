//! How long a port is held that sends many frames which it may not send. The others then wait in its own ring, and its sender,
//! rather than the bridge, has the work of them. Who goes on with it is held for longer, as what it sends meanwhile costs its guest, its
//! interface's loop and the bridge the processor time that honest guests could have. Time is an argument.

use std::time::{Duration, Instant};

/// After so many refused frames, as many as are received at once, a port is held.
const FRAMES: u64 = 64;
/// The first hold.
const SHORTEST: Duration = Duration::from_millis(1);
/// The longest one: its own honest frames wait no longer.
const LONGEST: Duration = Duration::from_millis(16);
/// A port that was not to be held again for so long begins with the first.
const FORGOTTEN: Duration = Duration::from_millis(100);

/// The frames that a port has sent and may not send.
#[derive(Debug, Default)]
pub(crate) struct Refusals {
    /// Since it was last held.
    frames: u64,
    last: Duration,
    /// When the last hold ends.
    until: Option<Instant>,
}

impl Refusals {
    /// Counts refused frames.
    #[inline]
    pub(crate) fn add(&mut self, frames: u64) {
        self.frames += frames;
    }

    /// Until when the port is to be held; `None` if it is not.
    #[inline]
    pub(crate) fn hold(&mut self, now: Instant) -> Option<Instant> {
        if self.frames < FRAMES { None } else { Some(self.next(now)) }
    }

    #[cold]
    fn next(&mut self, now: Instant) -> Instant {
        self.frames = 0;
        let goes_on = self.until.is_some_and(|until| now.saturating_duration_since(until) < FORGOTTEN);
        self.last = if goes_on { (2 * self.last).min(LONGEST) } else { SHORTEST };
        let until = now + self.last;
        self.until = Some(until);
        until
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn holds_of_a_port_that_goes_on_grow_to_a_bound_and_are_forgotten_after_a_pause() {
        let mut refusals = Refusals::default();
        let mut now = Instant::now();
        refusals.add(FRAMES - 1);
        assert_eq!(refusals.hold(now), None);
        let mut held = Vec::new();
        for _ in 0..7 {
            refusals.add(FRAMES);
            let until = refusals.hold(now).unwrap();
            assert_eq!(refusals.hold(now), None, "once for as many frames");
            held.push((until - now).as_millis());
            now = until + Duration::from_millis(5);
        }
        assert_eq!(held, [1, 2, 4, 8, 16, 16, 16]);
        now += FORGOTTEN;
        refusals.add(FRAMES);
        assert_eq!(refusals.hold(now), Some(now + SHORTEST));
    }
}
