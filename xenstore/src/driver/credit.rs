//! How often a device may be looked at: a burst, then a pace (XSA-349). Time is an argument.

use std::time::{Duration, Instant};

/// Looks at once; a whole handshake takes about ten.
pub(super) const BURST: u32 = 50;
/// One more after each of these.
pub(super) const PACE: Duration = Duration::from_millis(20);

/// One device's credit.
#[derive(Clone, Copy, Debug)]
pub(super) struct Credit {
    left: u32,
    since: Instant,
}

impl Credit {
    pub(super) fn new(now: Instant) -> Credit {
        Credit { left: BURST, since: now }
    }

    /// Takes one look, or says when the next is allowed.
    pub(super) fn take(&mut self, now: Instant) -> Result<(), Instant> {
        let earned = now.saturating_duration_since(self.since).as_nanos() / PACE.as_nanos();
        if earned > 0 {
            self.left = BURST.min(self.left.saturating_add(u32::try_from(earned).unwrap_or(BURST)));
            self.since = if self.left == BURST { now } else { self.since + PACE * earned as u32 };
        }
        match self.left.checked_sub(1) {
            Some(left) => {
                self.left = left;
                Ok(())
            }
            None => Err(self.since + PACE),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_burst_and_then_a_pace() {
        let start = Instant::now();
        let mut credit = Credit::new(start);
        for _ in 0..BURST {
            assert_eq!(credit.take(start), Ok(()));
        }
        assert_eq!(credit.take(start), Err(start + PACE));
        assert_eq!(credit.take(start + PACE), Ok(()));
        assert!(credit.take(start + PACE).is_err());
        let later = start + Duration::from_secs(3600);
        let granted = (0..1000).filter(|_| credit.take(later).is_ok()).count();
        assert_eq!(granted as u32, BURST);
    }
}
