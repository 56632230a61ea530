//! Both handshakes against each other, as values: after any merged events and restarts both ends are connected by the same
//! rings.

use netback::handshake as back;
use netfront::handshake as front;
use proptest::prelude::*;
use xenbus::XenbusState::{self, *};

/// The device's states and keys in the store, and each end's handshake. A number identifies a pair of rings.
struct Device {
    front_state: XenbusState,
    back_state: XenbusState,
    /// The rings that the frontend's keys name; 0 for none.
    published: u32,
    front: front::Handshake,
    front_rings: u32,
    back: back::Handshake,
    back_rings: u32,
    created: u32,
}

impl Device {
    fn new() -> Self {
        Self {
            front_state: Initialising,
            back_state: Initialising,
            published: 0,
            front: front::Handshake::default(),
            front_rings: 0,
            back: back::Handshake::default(),
            back_rings: 0,
            created: 0,
        }
    }

    fn set_front(&mut self, rings: u32, state: XenbusState) {
        self.front_rings = rings;
        self.published = rings;
        self.front_state = state;
    }

    fn set_back(&mut self, rings: u32, state: XenbusState) {
        self.back_rings = rings;
        self.back_state = state;
    }

    /// Carries out the frontend's next action; `false` if there is none.
    fn front_steps(&mut self) -> bool {
        match self.front.step(self.front_state, self.back_state, true) {
            front::Action::Wait => return false,
            front::Action::Run => {}
            front::Action::Connect => {
                self.created += 1;
                self.set_front(self.created, Connected);
            }
            front::Action::Close(state) => self.set_front(0, state),
        }
        true
    }

    /// Carries out the backend's next action; `false` if there is none.
    fn back_steps(&mut self) -> bool {
        match self.back.step(self.back_state, self.front_state, true) {
            back::Action::Wait => return false,
            back::Action::Advertise => self.set_back(0, InitWait),
            back::Action::Close(state) => self.set_back(0, state),
            back::Action::Connect => {
                self.back.set_connected(true);
                self.set_back(self.published, Connected);
            }
        }
        true
    }

    /// A new process serves the backend and finds the state of the old one.
    fn back_restarts(&mut self) {
        self.back = back::Handshake::default();
        self.back_rings = 0;
    }

    /// A new process has the frontend, and writes Initialising first.
    fn front_restarts(&mut self) {
        self.front = front::Handshake::default();
        self.set_front(0, Initialising);
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn both_ends_after_any_restarts_connect_by_the_same_rings(events in prop::collection::vec(0..12u8, 0..80)) {
        let mut device = Device::new();
        for event in events {
            match event {
                0 => device.back_restarts(),
                1 => device.front_restarts(),
                2..=6 => drop(device.front_steps()),
                _ => drop(device.back_steps()),
            }
        }
        for _ in 0..30 {
            device.front_steps();
            device.back_steps();
        }
        prop_assert_eq!((device.front_state, device.back_state), (Connected, Connected));
        prop_assert!(device.front.is_running() && device.back.is_connected());
        prop_assert_eq!(device.front_rings, device.back_rings);
        prop_assert!(!device.front_steps() && !device.back_steps(), "actions after both are connected");
    }
}
