// Not a core: does I/O or calls a hypervisor.

//! The longest turn of a loop, by its thread's processor time: what the others that it serves wait at most.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use nix::time::{ClockId, clock_gettime};

/// The longest turn of a loop so far, for other threads to read. Clones share it.
#[derive(Clone, Debug, Default)]
pub struct LongestTurn(Arc<AtomicU64>);

impl LongestTurn {
    /// The longest turn so far.
    pub fn get(&self) -> Duration {
        Duration::from_nanos(self.0.load(Ordering::Relaxed))
    }

    /// Begins a turn of the calling thread; it ends where the value is dropped.
    pub fn begin(&self) -> Turn<'_> {
        Turn { longest: self, began: thread_time() }
    }
}

/// A turn of a loop that goes on.
///
/// ```
/// use event_loop::LongestTurn;
/// use std::time::Duration;
///
/// let longest = LongestTurn::default();
/// let turn = longest.begin();
/// while turn.elapsed() < Duration::from_millis(1) {}
/// drop(turn);
/// assert!(longest.get() >= Duration::from_millis(1));
/// ```
#[derive(Debug)]
pub struct Turn<'l> {
    longest: &'l LongestTurn,
    began: Duration,
}

impl Turn<'_> {
    /// The processor time that the thread has used since the turn began.
    pub fn elapsed(&self) -> Duration {
        thread_time().saturating_sub(self.began)
    }
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        let nanos = u64::try_from(self.elapsed().as_nanos()).unwrap_or(u64::MAX);
        // One thread writes.
        if nanos > self.longest.0.load(Ordering::Relaxed) {
            self.longest.0.store(nanos, Ordering::Relaxed);
        }
    }
}

/// The processor time of the calling thread.
fn thread_time() -> Duration {
    // Fails for clocks that do not exist alone; this one always does.
    clock_gettime(ClockId::CLOCK_THREAD_CPUTIME_ID).map_or(Duration::ZERO, Duration::from)
}
