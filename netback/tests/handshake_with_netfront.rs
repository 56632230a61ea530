//! Both handshakes against each other, as values: whatever was lost, merged or restarted, in the end both ends are
//! connected by the same rings.

use netback::handshake as back;
use netfront::handshake as front;
use proptest::prelude::*;
use xenbus::XenbusState::{self, *};

/// What stands in the store, and what each end has made of it. Rings are known by a number.
struct Device {
    front_state: XenbusState,
    back_state: XenbusState,
    /// The frontend's keys.
    told: u32,
    front: front::Handshake,
    front_rings: u32,
    back: back::Handshake,
    back_rings: u32,
    made: u32,
}

impl Device {
    fn new() -> Self {
        Self {
            front_state: Initialising,
            back_state: Initialising,
            told: 0,
            front: front::Handshake::default(),
            front_rings: 0,
            back: back::Handshake::default(),
            back_rings: 0,
            made: 0,
        }
    }

    fn front_looks(&mut self) -> bool {
        match self.front.step(self.front_state, self.back_state, true) {
            front::Action::Wait => return false,
            front::Action::Run => {}
            front::Action::Connect => {
                self.made += 1;
                (self.front_rings, self.told, self.front_state) = (self.made, self.made, Connected);
            }
            front::Action::Close(state) => (self.front_rings, self.told, self.front_state) = (0, 0, state),
        }
        true
    }

    fn back_looks(&mut self) -> bool {
        match self.back.step(self.back_state, self.front_state, true) {
            back::Action::Wait => return false,
            back::Action::Advertise => (self.back_rings, self.back_state) = (0, InitWait),
            back::Action::Close(state) => (self.back_rings, self.back_state) = (0, state),
            back::Action::Connect => {
                self.back.set_connected(true);
                (self.back_rings, self.back_state) = (self.told, Connected);
            }
        }
        true
    }

    /// A new process serves the backend, and finds what the old one left.
    fn back_restarts(&mut self) {
        (self.back, self.back_rings) = (back::Handshake::default(), 0);
    }

    /// A new process has the frontend: it says so before anything else.
    fn front_restarts(&mut self) {
        self.front = front::Handshake::default();
        (self.front_rings, self.told, self.front_state) = (0, 0, Initialising);
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn both_ends_connect_by_the_same_rings(events in prop::collection::vec(0..12u8, 0..80)) {
        let mut device = Device::new();
        for event in events {
            match event {
                0 => device.back_restarts(),
                1 => device.front_restarts(),
                2..=6 => drop(device.front_looks()),
                _ => drop(device.back_looks()),
            }
        }
        for _ in 0..30 {
            device.front_looks();
            device.back_looks();
        }
        prop_assert_eq!((device.front_state, device.back_state), (Connected, Connected));
        prop_assert!(device.front.is_running() && device.back.is_connected());
        prop_assert_eq!(device.front_rings, device.back_rings);
        prop_assert!(!device.front_looks() && !device.back_looks(), "no rest");
    }
}
