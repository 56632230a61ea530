//! The two ends: a producer whose frames arrive at any time, and a consumer that takes one request a round.

use super::Removed;
use super::ring::{Receiver, Ring, Sender};
use event_loop::{Interest, PollState};

/// Where an end's loop is.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
enum At {
    /// The top of the loop, where it sleeps.
    Top,
    Publish,
    Notify(u8),
    Arm,
    Check,
}

/// Sends frames; those without room wait in its queue.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub(crate) struct Producer {
    at: At,
    state: PollState,
    half: Sender,
    /// Frames that have not come yet.
    to_come: u8,
    queued: u8,
}

impl Producer {
    pub(crate) fn new(frames: u8) -> Producer {
        let state = PollState::new(Interest::default());
        Producer { at: At::Top, state, half: Sender::default(), to_come: frames, queued: 0 }
    }

    /// Makes a step; `false` if there is none. `arrives`: the step is a frame's arrival.
    pub(crate) fn step(&mut self, ring: &mut Ring, arrives: bool, removed: Option<Removed>) -> bool {
        if arrives {
            return self.arrive(ring, removed);
        }
        self.at = match self.at {
            At::Top if std::mem::take(&mut ring.sender_event) => {
                self.state.wake();
                At::Top
            }
            At::Top if !self.state.is_polled() => return false,
            At::Top => {
                while self.queued > 0 && self.half.send(ring) {
                    self.queued -= 1;
                }
                self.state.need_room(self.queued > 0);
                At::Publish
            }
            At::Publish => self.half.publish(ring).map_or(At::Arm, At::Notify),
            At::Notify(old) => {
                if removed != Some(Removed::ProducerEvent) {
                    self.half.notify(ring, old);
                }
                At::Arm
            }
            At::Arm if !self.state.is_polled() => At::Top,
            At::Arm => {
                if self.state.needs().room && removed != Some(Removed::RoomArm) {
                    self.half.arm_half(ring);
                }
                At::Check
            }
            At::Check => {
                let found = self.state.needs().room && self.half.has_responses(ring);
                self.state.armed(found && removed != Some(Removed::RoomCheck));
                At::Top
            }
        };
        true
    }

    fn arrive(&mut self, ring: &Ring, removed: Option<Removed>) -> bool {
        if self.at != At::Top || self.to_come == 0 {
            return false;
        }
        self.to_come -= 1;
        if self.queued > 0 || !self.half.send(ring) {
            self.queued += 1;
            if removed != Some(Removed::ProducerNeed) {
                self.state.need_room(true);
            }
        }
        self.at = At::Publish;
        true
    }
}

/// Takes frames.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub(crate) struct Consumer {
    at: At,
    state: PollState,
    half: Receiver,
}

impl Default for Consumer {
    fn default() -> Consumer {
        Consumer { at: At::Top, state: PollState::new(Interest::INPUT), half: Receiver::default() }
    }
}

impl Consumer {
    /// Makes a step; `false` if there is none.
    pub(crate) fn step(&mut self, ring: &mut Ring, removed: Option<Removed>) -> bool {
        self.at = match self.at {
            At::Top if std::mem::take(&mut ring.receiver_event) => {
                self.state.wake();
                At::Top
            }
            At::Top if !self.state.is_polled() => return false,
            At::Top => match self.half.take(ring, 1) {
                true => {
                    self.half.answer(1);
                    At::Publish
                }
                false => At::Arm,
            },
            At::Publish => self.half.publish(ring).map_or(At::Top, At::Notify),
            At::Notify(old) => {
                if removed != Some(Removed::ConsumerEvent) {
                    self.half.notify(ring, old);
                }
                At::Top
            }
            At::Arm => {
                self.half.arm(ring);
                At::Check
            }
            At::Check => {
                self.state.armed(self.half.has_input(ring) && removed != Some(Removed::InputCheck));
                At::Top
            }
        };
        true
    }

    /// Requests taken.
    pub(crate) fn taken(&self) -> u8 {
        self.half.taken
    }
}
