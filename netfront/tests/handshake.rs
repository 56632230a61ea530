//! The frontend's handshake against any order of backend states, and against Linux's netback after a restart.

use netfront::handshake::{Action, Handshake, Identity, Negotiated};
use proptest::prelude::*;
use ring_abi::netif::{Mac, key};
use ring_abi::xenbus::XenbusState;
use std::collections::VecDeque;
use xenbus::Keys;

fn any_state() -> impl Strategy<Value = XenbusState> {
    prop::sample::select(XenbusState::ALL.to_vec())
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    /// Frames flow only over rings that were published to the present backend.
    #[test]
    fn handshake_with_any_states_connects_once_a_backend_restarts(
        states in prop::collection::vec((any_state(), any::<bool>()), 1..60),
    ) {
        let mut handshake = Handshake::default();
        let mut own = XenbusState::Initialising;
        let mut rings = false;
        for (back, online) in states {
            match handshake.step(own, back, online) {
                Action::Wait => {}
                Action::Connect => {
                    prop_assert!(!rings, "rings are set up twice");
                    rings = true;
                    own = XenbusState::Connected;
                }
                Action::Run => prop_assert!(rings && back == XenbusState::Connected),
                Action::Close(state) => {
                    prop_assert_ne!(state, XenbusState::Connected);
                    rings = false;
                    own = state;
                }
            }
            prop_assert!(!handshake.is_running() || rings);
            if matches!(back, XenbusState::Closing | XenbusState::Closed) {
                prop_assert!(!rings, "rings remain after the backend has closed");
            }
        }
        for back in [XenbusState::Closed, XenbusState::Closed, XenbusState::InitWait, XenbusState::Connected] {
            for _ in 0..3 {
                match handshake.step(own, back, true) {
                    Action::Connect => own = XenbusState::Connected,
                    Action::Close(state) => own = state,
                    Action::Run | Action::Wait => {}
                }
            }
        }
        prop_assert!(handshake.is_running());
    }

    #[test]
    fn parse_of_any_keys_does_not_panic(keys in prop::collection::vec(("[a-z-]{0,30}", "\\PC{0,40}"), 0..10)) {
        let mut all = Keys::new("/b").with(key::FEATURE_RX_COPY, 1).with(key::MAC, "00:16:3e:00:00:01");
        all.extend(keys);
        let _ = Negotiated::parse(&all);
        let _ = Identity::parse(&all, &all);
    }
}

/// A model of Linux's netback, which reads the frontend's present state and writes every state on its way to the one
/// it answers with.
struct Linux {
    /// The backend's state in the store.
    back: XenbusState,
    /// States still to be written.
    path: VecDeque<XenbusState>,
}

impl Linux {
    /// Writes the next state, if there is one to write.
    fn step(&mut self, front: XenbusState) {
        use XenbusState::*;
        if self.path.is_empty() {
            self.path.extend(match (front, self.back) {
                (Initialising, Connected) => &[Closing, Closed, InitWait][..],
                (Initialising, Closing) => &[Closed, InitWait],
                (Initialising, Closed) => &[InitWait],
                (Connected, Closing) => &[Closed, InitWait, Connected],
                (Connected, Closed) => &[InitWait, Connected],
                (Connected, InitWait) => &[Connected],
                (Closed, Connected | InitWait) => &[Closing, Closed],
                (Closed, Closing) => &[Closed],
                _ => &[],
            });
        }
        self.back = self.path.pop_front().unwrap_or(self.back);
    }
}

#[test]
fn handshake_with_linux_after_a_killed_frontend_connects_once() {
    for found in [XenbusState::InitWait, XenbusState::Connected, XenbusState::Closing, XenbusState::Closed] {
        // Every order of the first 12 steps of either end; then the ends alternate.
        for order in 0..1u32 << 12 {
            let mut linux = Linux { back: found, path: VecDeque::new() };
            let mut handshake = Handshake::default();
            let mut own = XenbusState::Initialising;
            let mut connects = 0;
            for step in 0..40 {
                if step < 12 && order >> step & 1 == 0 || step >= 12 && step % 2 == 0 {
                    linux.step(own);
                    continue;
                }
                match handshake.step(own, linux.back, true) {
                    Action::Connect => {
                        own = XenbusState::Connected;
                        connects += 1;
                    }
                    Action::Close(state) => own = state,
                    Action::Run | Action::Wait => {}
                }
            }
            assert!(handshake.is_running() && connects == 1, "{found}, {order:#b}: {own} and {}", linux.back);
        }
    }
}

#[test]
fn parse_of_missing_or_wrong_keys_names_the_key() {
    let none = Keys::new("/b");
    assert!(Negotiated::parse(&none).unwrap_err().to_string().contains(key::FEATURE_RX_COPY));
    let back = Keys::new("/b").with(key::MTU, 9000);
    let own = |mac: &str| Keys::new("/f").with(key::MAC, mac);
    let identity = Identity::parse(&own("00:16:3E:01:02:ff"), &back).unwrap();
    assert_eq!((identity.mac, identity.mtu), (Mac([0, 0x16, 0x3e, 1, 2, 0xff]), 9000));
    for bad in ["", "00:16:3e:01:02", "00:16:3e:01:02:03:04", "0:16:3e:01:02:03", "zz:16:3e:01:02:03"] {
        let error = Identity::parse(&own(bad), &back).unwrap_err();
        assert!(error.to_string().contains(key::MAC), "{bad}: {error}");
    }
    let error = Identity::parse(&own("00:16:3e:00:00:01"), &Keys::new("/b").with(key::MTU, 67)).unwrap_err();
    assert!(error.to_string().contains("68 to 65521"), "{error}");
}
