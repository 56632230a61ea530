//! Counters of the events that a loop sends to its peer and takes from it.

use crate::Counter;

/// Live counters of events, which one thread at a time writes: those of one channel, or of several that the same thread
/// serves.
#[derive(Debug, Default)]
pub struct EventCounters {
    sent: Counter,
    suppressed: Counter,
    taken: Counter,
}

/// The values of [`EventCounters`].
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct EventCounts {
    /// Events sent.
    pub sent: u64,
    /// Times that something was published without an event of its own: the peer wanted none, or one was to be sent already.
    pub suppressed: u64,
    /// Events taken; several sent by the peer may merge into one.
    pub taken: u64,
}

impl EventCounters {
    /// Reads the counters, each by itself: they are not of one instant.
    pub fn read(&self) -> EventCounts {
        EventCounts { sent: self.sent.get(), suppressed: self.suppressed.get(), taken: self.taken.get() }
    }

    /// Counts an event that was sent.
    #[inline]
    pub fn sent(&self) {
        self.sent.add(1);
    }

    /// Counts an event that was not sent.
    #[inline]
    pub fn suppressed(&self) {
        self.suppressed.add(1);
    }

    /// Counts an event that was taken.
    #[inline]
    pub fn taken(&self) {
        self.taken.add(1);
    }
}
