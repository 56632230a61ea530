//! The model: its state, and the search of all states that can be reached.

mod bridge;
mod ends;
mod ring;

use bridge::Bridge;
use ends::{Consumer, Producer};
use ring::Ring;
use std::collections::HashSet;

/// A wake-up to remove.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Removed {
    /// The producer's event for requests.
    ProducerEvent,
    /// The bridge's event for responses to the producer.
    ResponseEvent,
    /// The bridge's event for requests to the consumer.
    BridgeEvent,
    /// The consumer's event for responses.
    ConsumerEvent,
    /// The look for input after arming for it.
    InputCheck,
    /// The look for room after arming for it.
    RoomCheck,
    /// Arming for room at all.
    RoomArm,
    /// Arming for as many slots as a frame needs, where fewer are free.
    RoomCount,
    /// The need for room when frames come for the producer's ring while it is armed.
    ProducerNeed,
    /// The same for the bridge's port to the consumer.
    BridgeNeed,
    /// The end of a hold.
    Release,
}

impl Removed {
    pub(crate) const ALL: [Removed; 11] = [
        Removed::ProducerEvent,
        Removed::ResponseEvent,
        Removed::BridgeEvent,
        Removed::ConsumerEvent,
        Removed::InputCheck,
        Removed::RoomCheck,
        Removed::RoomArm,
        Removed::RoomCount,
        Removed::ProducerNeed,
        Removed::BridgeNeed,
        Removed::Release,
    ];
}

/// How large a model is.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Size {
    /// Frames that are sent.
    pub(crate) frames: u8,
    /// Slots of each ring.
    pub(crate) slots: u8,
    /// Slots of a frame.
    pub(crate) frame: u8,
}

/// A state of all three.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub(crate) struct State {
    /// From the producer to the bridge.
    one: Ring,
    /// From the bridge to the consumer.
    two: Ring,
    producer: Producer,
    bridge: Bridge,
    consumer: Consumer,
}

impl State {
    fn new(size: Size) -> State {
        State {
            one: Ring::new(size.slots, size.frame),
            two: Ring::new(size.slots, size.frame),
            producer: Producer::new(size.frames),
            bridge: Bridge::default(),
            consumer: Consumer::default(),
        }
    }

    /// The states after one step of any of the three.
    fn next(&self, removed: Option<Removed>) -> Vec<State> {
        let mut next = Vec::new();
        for arrives in [false, true] {
            let mut state = self.clone();
            if state.producer.step(&mut state.one, arrives, removed) {
                next.push(state);
            }
        }
        let mut state = self.clone();
        if state.bridge.step(&mut state.one, &mut state.two, removed) {
            next.push(state);
        }
        let mut state = self.clone();
        if state.consumer.step(&mut state.two, removed) {
            next.push(state);
        }
        next
    }
}

/// Searches all states; returns one without a next step in which a frame has not arrived, if there is one, and the number of
/// states.
pub(crate) fn find_stuck(size: Size, removed: Option<Removed>) -> (Option<State>, usize) {
    let start = State::new(size);
    let mut seen = HashSet::from([start.clone()]);
    let mut open = vec![start];
    while let Some(state) = open.pop() {
        let next = state.next(removed);
        if next.is_empty() && state.consumer.taken() < size.frames * size.frame {
            return (Some(state), seen.len());
        }
        for state in next {
            if seen.insert(state.clone()) {
                open.push(state);
            }
        }
    }
    (None, seen.len())
}
