//! The longest stall of a stream of completions, as one thread observes it and another asks for it.

use std::sync::{Mutex, MutexGuard};
use std::time::Duration;

/// What a thread has observed.
#[derive(Default, Debug)]
pub(super) struct Stalls(Mutex<State>);

#[derive(Default, Debug)]
struct State {
    longest: Duration,
    count: u64,
    stop: bool,
    failure: Option<String>,
}

impl Stalls {
    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().expect("no panic while it is held")
    }

    /// Enters a completion after this stall. `false` if no more are wanted.
    pub(super) fn completed(&self, stall: Duration) -> bool {
        let mut state = self.state();
        state.longest = state.longest.max(stall);
        state.count += 1;
        !state.stop
    }

    /// Whether no more completions are wanted.
    pub(super) fn is_stopped(&self) -> bool {
        self.state().stop
    }

    /// Enters that no more completions will come, and why.
    pub(super) fn failed(&self, why: String) {
        self.state().failure.get_or_insert(why);
    }

    /// Why no more completions come.
    pub(super) fn failure(&self) -> Option<String> {
        self.state().failure.clone()
    }

    /// Asks the observing thread to end.
    pub(super) fn stop(&self) {
        self.state().stop = true;
    }

    /// Forgets the stalls so far.
    pub(super) fn begin(&self) {
        self.state().longest = Duration::ZERO;
    }

    /// Forgets how many completions there were, and keeps the longest stall.
    pub(super) fn count_anew(&self) {
        self.state().count = 0;
    }

    /// Completions since the count began.
    pub(super) fn count(&self) -> u64 {
        self.state().count
    }

    /// The longest stall since [`Self::begin`].
    pub(super) fn longest(&self) -> Duration {
        self.state().longest
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn longest_stall_outlives_a_new_count_and_not_a_new_round() {
        let stalls = Stalls::default();
        stalls.completed(Duration::from_millis(30));
        stalls.count_anew();
        assert!(stalls.completed(Duration::from_millis(1)));
        assert_eq!((stalls.longest(), stalls.count()), (Duration::from_millis(30), 1));
        stalls.begin();
        assert_eq!(stalls.longest(), Duration::ZERO);
        stalls.stop();
        assert!(!stalls.completed(Duration::ZERO));
    }
}
