//! How often a device's failing requests are logged: a line a minute, that says how many were not.

use std::time::{Duration, Instant};

/// The time between two lines.
const INTERVAL: Duration = Duration::from_secs(60);

/// Decides which errors of a device are logged.
#[derive(Debug, Default)]
pub struct ErrorLog {
    last: Option<Instant>,
    unsaid: u64,
}

impl ErrorLog {
    /// Whether an error at time `now` is to be logged: then how many before it were not.
    pub fn admit(&mut self, now: Instant) -> Option<u64> {
        if self.last.is_some_and(|last| now.saturating_duration_since(last) < INTERVAL) {
            self.unsaid += 1;
            return None;
        }
        self.last = Some(now);
        Some(std::mem::take(&mut self.unsaid))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_error_a_minute_is_logged_with_the_number_of_the_others() {
        let mut log = ErrorLog::default();
        let start = Instant::now();
        let at = |seconds| start + Duration::from_secs(seconds);
        let admitted = [0, 1, 59, 60, 61, 300].map(|seconds| log.admit(at(seconds)));
        assert_eq!(admitted, [Some(0), None, None, Some(2), None, Some(1)]);
    }
}
