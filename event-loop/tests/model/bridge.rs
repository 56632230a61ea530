//! The bridge: one thread that takes frames from one port, and sends them by another. It answers a frame once it is sent,
//! and takes none while frames wait: it holds the port that they came from.

use super::Removed;
use super::ring::{Receiver, Ring, Sender};
use event_loop::{Interest, PollState};

/// Most frames taken in a round.
const BURST: u8 = 2;

/// Where the loop is.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
enum At {
    /// The top of the loop, where it sleeps.
    Top,
    Drain,
    Serve,
    PublishOut,
    NotifyOut(u8),
    PublishIn,
    NotifyIn(u8),
    ArmIn,
    CheckIn,
    ArmOut,
    CheckOut,
}

/// A bridge with a port for input and one for output.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub(crate) struct Bridge {
    at: At,
    input: PollState,
    output: PollState,
    receiver: Receiver,
    sender: Sender,
    queued: u8,
    is_held: bool,
}

impl Default for Bridge {
    fn default() -> Bridge {
        Bridge {
            at: At::Top,
            input: PollState::new(Interest::INPUT),
            output: PollState::new(Interest::default()),
            receiver: Receiver::default(),
            sender: Sender::default(),
            queued: 0,
            is_held: false,
        }
    }
}

impl Bridge {
    /// Makes a step; `false` if there is none.
    pub(crate) fn step(&mut self, from: &mut Ring, to: &mut Ring, removed: Option<Removed>) -> bool {
        self.at = match self.at {
            At::Top if std::mem::take(&mut from.receiver_event) => {
                self.input.wake();
                At::Top
            }
            At::Top if std::mem::take(&mut to.sender_event) => {
                self.output.wake();
                At::Top
            }
            At::Top if !self.input.is_polled() && !self.output.is_polled() => return false,
            At::Top => At::Drain,
            At::Drain => self.drain(to, removed),
            At::Serve => self.serve(from, to, removed),
            At::PublishOut => self.sender.publish(to).map_or(At::PublishIn, At::NotifyOut),
            At::NotifyOut(old) => {
                if removed != Some(Removed::BridgeEvent) {
                    self.sender.notify(to, old);
                }
                At::PublishIn
            }
            At::PublishIn => self.receiver.publish(from).map_or(At::ArmIn, At::NotifyIn),
            At::NotifyIn(old) => {
                if removed != Some(Removed::ResponseEvent) {
                    self.receiver.notify(from, old);
                }
                At::ArmIn
            }
            At::ArmIn if !self.input.is_polled() => At::ArmOut,
            At::ArmIn => {
                if self.input.needs().input {
                    self.receiver.arm(from);
                }
                At::CheckIn
            }
            At::CheckIn => {
                let found = self.input.needs().input && self.receiver.has_input(from);
                self.input.armed(found && removed != Some(Removed::InputCheck));
                At::ArmOut
            }
            At::ArmOut if !self.output.is_polled() => At::Top,
            At::ArmOut => {
                match removed {
                    _ if !self.output.needs().room => {}
                    Some(Removed::RoomArm) => {}
                    Some(Removed::RoomCount) => self.sender.arm_for_one(to),
                    _ => self.sender.arm(to),
                }
                At::CheckOut
            }
            At::CheckOut => {
                let found = self.output.needs().room && self.sender.has_room(to);
                self.output.armed(found && removed != Some(Removed::RoomCheck));
                At::Top
            }
        };
        true
    }

    fn drain(&mut self, to: &Ring, removed: Option<Removed>) -> At {
        if self.output.is_polled() {
            while self.queued > 0 && self.sender.send(to) {
                self.queued -= 1;
                self.receiver.answer(to.frame);
            }
            self.output.need_room(self.queued > 0);
        }
        if self.is_held && self.queued == 0 {
            self.is_held = false;
            if removed != Some(Removed::Release) {
                self.input.need_input(true);
            }
        }
        At::Serve
    }

    fn serve(&mut self, from: &Ring, to: &Ring, removed: Option<Removed>) -> At {
        if !self.input.is_polled() || !self.input.needs().input {
            return At::PublishOut;
        }
        for _ in 0..BURST {
            if !self.receiver.take(from, from.frame) {
                break;
            }
            if self.queued == 0 && self.sender.send(to) {
                self.receiver.answer(to.frame);
            } else {
                self.queued += 1;
            }
        }
        if self.queued > 0 {
            if removed != Some(Removed::BridgeNeed) {
                self.output.need_room(true);
            }
            self.is_held = true;
            self.input.need_input(false);
        }
        At::PublishOut
    }
}
