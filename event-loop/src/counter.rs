//! A counter that one thread writes and any other reads.
//!
//! Writing is a load and a store, both relaxed, and no locked instruction: what a data path can afford for each request.
//! So a counter has one writer at a time. Readers see each counter by itself: several are not of one instant.

use core::sync::atomic::{AtomicU64, Ordering::Relaxed};

/// A counter with one writer at a time.
///
/// ```
/// use event_loop::Counter;
///
/// let requests = Counter::default();
/// requests.add(3);
/// requests.add(1);
/// assert_eq!(requests.get(), 4);
/// ```
#[derive(Debug, Default)]
pub struct Counter(AtomicU64);

impl Counter {
    /// The value.
    #[inline]
    pub fn get(&self) -> u64 {
        self.0.load(Relaxed)
    }

    /// Adds `count`; wraps around after 2^64.
    #[inline]
    pub fn add(&self, count: u64) {
        self.set(self.get().wrapping_add(count));
    }

    /// Sets the value, as of a quantity that also falls.
    #[inline]
    pub fn set(&self, value: u64) {
        self.0.store(value, Relaxed);
    }

    /// Sets the value to `value` if that is larger.
    #[inline]
    pub fn raise(&self, value: u64) {
        if value > self.get() {
            self.set(value);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counter_adds_wraps_and_keeps_its_largest_value() {
        let counter = Counter::default();
        counter.add(u64::MAX);
        counter.add(2);
        assert_eq!(counter.get(), 1);
        counter.raise(7);
        counter.raise(5);
        assert_eq!(counter.get(), 7);
        counter.set(2);
        assert_eq!(counter.get(), 2);
    }
}
