//! A bounded ring with the indexes of ring.h, and the private indexes of its halves.

/// The shared memory of a ring, and the event channel of its ends.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub(crate) struct Ring {
    slots: u8,
    /// Slots of a frame.
    pub(crate) frame: u8,
    req_prod: u8,
    rsp_prod: u8,
    req_event: u8,
    rsp_event: u8,
    /// An event for the sender is pending.
    pub(crate) sender_event: bool,
    /// An event for the receiver is pending.
    pub(crate) receiver_event: bool,
}

impl Ring {
    pub(crate) fn new(slots: u8, frame: u8) -> Ring {
        Ring {
            slots,
            frame,
            req_prod: 0,
            rsp_prod: 0,
            req_event: 1,
            rsp_event: 1,
            sender_event: false,
            // A backend polls a ring when it connects.
            receiver_event: true,
        }
    }
}

/// `RING_PUSH_*_AND_CHECK_NOTIFY`.
fn wants_event(old: u8, new: u8, event: u8) -> bool {
    new.wrapping_sub(event) < new.wrapping_sub(old)
}

/// The half that sends.
#[derive(Clone, PartialEq, Eq, Hash, Debug, Default)]
pub(crate) struct Sender {
    pushed: u8,
    published: u8,
    reaped: u8,
}

impl Sender {
    /// Takes responses and pushes a frame; `false` if the ring has too few free slots.
    pub(crate) fn send(&mut self, ring: &Ring) -> bool {
        self.reaped = ring.rsp_prod;
        let has_room = self.has_room(ring);
        self.pushed += if has_room { ring.frame } else { 0 };
        has_room
    }

    /// Publishes what was pushed; returns what was published before, if that is less.
    pub(crate) fn publish(&mut self, ring: &mut Ring) -> Option<u8> {
        let old = std::mem::replace(&mut self.published, self.pushed);
        ring.req_prod = self.pushed;
        (old != self.pushed).then_some(old)
    }

    /// Sends an event if the receiver wants one.
    pub(crate) fn notify(&self, ring: &mut Ring, old: u8) {
        ring.receiver_event |= wants_event(old, self.published, ring.req_event);
    }

    /// Asks for an event once half of the requests in flight are answered, as a frontend that sends.
    pub(crate) fn arm_half(&self, ring: &mut Ring) {
        ring.rsp_event = self.reaped + (self.published - self.reaped) / 2 + 1;
    }

    /// Whether there are responses.
    pub(crate) fn has_responses(&self, ring: &Ring) -> bool {
        ring.rsp_prod != self.reaped
    }

    /// Asks for an event once there is room for a frame, as a backend whose guest posts buffers.
    pub(crate) fn arm(&self, ring: &mut Ring) {
        ring.rsp_event = self.pushed + ring.frame - ring.slots;
    }

    /// Asks for an event for the next free slot, if there is none.
    pub(crate) fn arm_for_one(&self, ring: &mut Ring) {
        if self.pushed - self.reaped == ring.slots {
            ring.rsp_event = self.reaped + 1;
        }
    }

    /// Whether there is room for a frame.
    pub(crate) fn has_room(&self, ring: &Ring) -> bool {
        self.pushed + ring.frame <= ring.rsp_prod + ring.slots
    }
}

/// The half that receives.
#[derive(Clone, PartialEq, Eq, Hash, Debug, Default)]
pub(crate) struct Receiver {
    pub(crate) taken: u8,
    answered: u8,
    published: u8,
}

impl Receiver {
    /// Takes as many requests if there are any.
    pub(crate) fn take(&mut self, ring: &Ring, requests: u8) -> bool {
        let any = self.has_input(ring);
        self.taken += if any { requests } else { 0 };
        any
    }

    /// Answers as many of those that were taken.
    pub(crate) fn answer(&mut self, requests: u8) {
        self.answered += requests;
    }

    /// As [`Sender::publish`], for responses.
    pub(crate) fn publish(&mut self, ring: &mut Ring) -> Option<u8> {
        let old = std::mem::replace(&mut self.published, self.answered);
        ring.rsp_prod = self.answered;
        (old != self.answered).then_some(old)
    }

    /// Sends an event if the sender wants one.
    pub(crate) fn notify(&self, ring: &mut Ring, old: u8) {
        ring.sender_event |= wants_event(old, self.published, ring.rsp_event);
    }

    /// Asks for an event for the next frame.
    pub(crate) fn arm(&self, ring: &mut Ring) {
        ring.req_event = self.taken + 1;
    }

    /// Whether there are frames.
    pub(crate) fn has_input(&self, ring: &Ring) -> bool {
        ring.req_prod != self.taken
    }
}
