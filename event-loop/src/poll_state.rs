//! Who looks at a device next: the loop, which polls it, or the device's peer, which was asked to tell.
//!
//! Work that is left always has somebody who will look at it. A loop that stops polling a device arms it first, for all that it
//! needs of the device, and looks once more. What the loop comes to need while the device is armed for something else, as
//! when it sends to a full device that was armed for input alone, makes it poll again: nobody else would tell.

/// What a loop needs of a device to go on.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
pub struct Interest {
    /// Something to take: requests, responses, frames.
    pub input: bool,
    /// Room for output that waits: free slots, posted buffers.
    pub room: bool,
}

impl Interest {
    /// Input alone.
    pub const INPUT: Self = Self { input: true, room: false };
    /// Input and room.
    pub const BOTH: Self = Self { input: true, room: true };

    /// Whether it is nothing at all.
    #[inline]
    pub fn is_none(self) -> bool {
        !self.input && !self.room
    }

    /// Whether it contains all of `other`.
    #[inline]
    fn covers(self, other: Self) -> bool {
        (self.input || !other.input) && (self.room || !other.room)
    }
}

/// Whether a loop polls a device, or has armed it, and for what.
///
/// ```
/// use event_loop::{Interest, PollState};
///
/// let mut state = PollState::new(Interest::INPUT);
/// assert!(state.is_polled());
/// // The loop arms the device for `needs`, and finds nothing there: it may sleep.
/// assert_eq!(state.needs(), Interest::INPUT);
/// state.armed(false);
/// assert!(!state.is_polled());
/// // Output for the device finds no room, for which the device is not armed: it is polled again, and then armed for both.
/// state.need_room(true);
/// assert!(state.is_polled());
/// assert_eq!(state.needs(), Interest::BOTH);
/// ```
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct PollState {
    needs: Interest,
    /// What the device is armed for; `None` while it is polled.
    armed: Option<Interest>,
}

impl PollState {
    /// A device that is polled.
    pub fn new(needs: Interest) -> Self {
        Self { needs, armed: None }
    }

    /// Whether the loop has to look at the device, rather than its peer to tell.
    #[inline]
    pub fn is_polled(&self) -> bool {
        self.armed.is_none()
    }

    /// What is needed of the device: what to arm it for.
    #[inline]
    pub fn needs(&self) -> Interest {
        self.needs
    }

    /// Sets whether input is needed.
    #[inline]
    pub fn need_input(&mut self, input: bool) {
        self.need(Interest { input, ..self.needs });
    }

    /// Sets whether room is needed.
    #[inline]
    pub fn need_room(&mut self, room: bool) {
        self.need(Interest { room, ..self.needs });
    }

    #[inline]
    fn need(&mut self, needs: Interest) {
        self.needs = needs;
        if self.armed.is_some_and(|armed| !armed.covers(needs)) {
            self.armed = None;
        }
    }

    /// Records that the device told, or is to be looked at for another reason.
    #[inline]
    pub fn wake(&mut self) {
        self.armed = None;
    }

    /// Records that the device was armed for all of [`PollState::needs`]. `found`: something was there already, so that it
    /// stays polled.
    #[inline]
    pub fn armed(&mut self, found: bool) {
        self.armed = (!found).then_some(self.needs);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn need_that_the_device_is_not_armed_for_makes_it_polled() {
        let mut state = PollState::new(Interest::INPUT);
        state.armed(true);
        assert!(state.is_polled(), "something was found");
        state.armed(false);
        state.need_room(false);
        state.need_input(true);
        assert!(!state.is_polled(), "armed for all that is needed");
        state.need_input(false);
        assert!(!state.is_polled(), "armed for more than is needed");
        state.need_input(true);
        assert!(!state.is_polled(), "still armed for it");
        state.need_room(true);
        assert!(state.is_polled());
    }

    #[test]
    fn state_armed_for_nothing_is_polled_with_the_first_need() {
        let mut state = PollState::new(Interest::default());
        assert!(state.needs().is_none());
        state.armed(false);
        state.need_input(true);
        assert!(state.is_polled());
        state.armed(false);
        state.wake();
        assert!(state.is_polled());
    }
}
