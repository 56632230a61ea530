// Not a core: does I/O or calls a hypervisor.

//! The longest turn of a loop in processor time of its thread, measured without a system call a turn.
//!
//! The thread's processor time is read by a system call (`CLOCK_THREAD_CPUTIME_ID` is not in the vDSO for the calling thread),
//! so that it is read once in at least [`SAMPLE`] of wall-clock time that the loop was busy. A turn counts as its wall-clock time
//! or as the processor time since the last reading, whichever is less: at most [`SAMPLE`] too much, and nothing of what other
//! threads had of the processor.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use event_loop::Counter;
use nix::time::{ClockId, clock_gettime};

/// Busy time between two readings of the thread's clock.
const SAMPLE: Duration = Duration::from_micros(200);

/// Measures the turns of one thread.
#[derive(Debug)]
pub(crate) struct TurnMeter {
    began: Instant,
    /// Busy time since the last reading.
    unread: Duration,
    read: Duration,
    longest_ns: Arc<Counter>,
}

impl TurnMeter {
    /// A meter, which is to be moved to its thread before its first turn.
    pub(crate) fn new(now: Instant) -> TurnMeter {
        TurnMeter { began: now, unread: Duration::ZERO, read: Duration::MAX, longest_ns: Arc::default() }
    }

    /// The longest turn in nanoseconds, 0 while there was none as long as [`SAMPLE`].
    pub(crate) fn longest_ns(&self) -> &Arc<Counter> {
        &self.longest_ns
    }

    /// A turn begins.
    #[inline]
    pub(crate) fn begin(&mut self, now: Instant) {
        self.began = now;
    }

    /// The turn that began last ends.
    #[inline]
    pub(crate) fn end(&mut self, now: Instant) {
        let wall = now.saturating_duration_since(self.began);
        self.unread += wall;
        if self.unread >= SAMPLE {
            self.read(wall);
        }
    }

    #[cold]
    fn read(&mut self, wall: Duration) {
        self.unread = Duration::ZERO;
        let Ok(clock) = clock_gettime(ClockId::CLOCK_THREAD_CPUTIME_ID) else { return };
        let now = Duration::from(clock);
        let processor = now.saturating_sub(std::mem::replace(&mut self.read, now));
        self.longest_ns.raise(wall.min(processor).as_nanos() as u64);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn turn_counts_as_processor_time_and_not_as_time_asleep() {
        let start = Instant::now();
        let mut meter = TurnMeter::new(start);
        meter.end(start + SAMPLE);
        // A turn that lasted an hour, of which this thread had next to nothing.
        meter.begin(start);
        meter.end(start + Duration::from_secs(3600));
        let asleep = meter.longest_ns().get();
        assert!(asleep < 60_000_000_000, "{asleep}");
        // One that uses the processor.
        let begin = Instant::now();
        meter.begin(begin);
        let clock = || Duration::from(clock_gettime(ClockId::CLOCK_THREAD_CPUTIME_ID).unwrap());
        let used = clock();
        while clock() - used < Duration::from_millis(2) {}
        meter.end(Instant::now());
        assert!(meter.longest_ns().get() >= 2_000_000);
    }
}
