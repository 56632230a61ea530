//! Whether one end of an event channel is masked, and whether an event arrived meanwhile: what both implementations of
//! [`Channel`](event_channel::Channel) have in common. Without a lock; an end that is not masked costs one load an event.

use std::sync::atomic::{AtomicU8, Ordering::Relaxed};

const MASKED: u8 = 1;
const PENDING: u8 = 2;

/// The mask of one end. Only this word is shared, so that no access needs an order among others.
#[derive(Debug, Default)]
pub(crate) struct Mask(AtomicU8);

impl Mask {
    pub(crate) fn set(&self) {
        self.0.fetch_or(MASKED, Relaxed);
    }

    /// Remembers an event that was just received, if the end is masked; `false` if it is not, and the event is to be
    /// delivered.
    #[inline]
    pub(crate) fn remember(&self) -> bool {
        let remembered = |bits: u8| (bits & MASKED != 0).then_some(bits | PENDING);
        self.0.load(Relaxed) & MASKED != 0 && self.0.fetch_update(Relaxed, Relaxed, remembered).is_ok()
    }

    /// Ends the mask; `true` if an event was remembered.
    pub(crate) fn clear(&self) -> bool {
        self.0.swap(0, Relaxed) & PENDING != 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn event_is_remembered_once_and_only_while_masked() {
        let mask = Mask::default();
        assert!(!mask.remember() && !mask.clear());
        mask.set();
        assert!(!mask.clear(), "no event");
        mask.set();
        assert!(mask.remember() && mask.remember());
        mask.set();
        assert!(mask.clear(), "a second call to set forgets nothing");
        assert!(!mask.clear() && !mask.remember());
    }

    /// An event is either delivered or remembered, whenever the mask ends.
    #[test]
    fn event_that_races_with_the_end_of_a_mask_is_not_lost() {
        for _ in 0..1000 {
            let mask = Mask::default();
            mask.set();
            let (delivered, remembered) = std::thread::scope(|scope| {
                let taker = scope.spawn(|| !mask.remember());
                let remembered = mask.clear();
                (taker.join().unwrap(), remembered)
            });
            assert!(delivered != remembered);
        }
    }
}
