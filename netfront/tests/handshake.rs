//! The frontend's handshake against backends of any mind: whatever is seen in whatever order, frames flow only over
//! rings that the present backend was told of.

use netfront::handshake::{Handshake, Identity, Offer, Step};
use proptest::prelude::*;
use ring_abi::xenbus::XenbusState;
use std::collections::VecDeque;
use xenstore::Keys;

fn any_state() -> impl Strategy<Value = XenbusState> {
    prop::sample::select(XenbusState::ALL.to_vec())
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn any_order_of_states_is_survived(looks in prop::collection::vec((any_state(), any::<bool>()), 1..60)) {
        let (mut handshake, mut own, mut rings) = (Handshake::default(), XenbusState::Initialising, false);
        for (back, online) in looks {
            match handshake.step(own, back, online) {
                Step::Stay => {}
                Step::Connect => {
                    prop_assert!(!rings, "rings over rings");
                    rings = true;
                    own = XenbusState::Connected;
                }
                Step::Run => prop_assert!(rings && back == XenbusState::Connected),
                Step::End(state) => {
                    prop_assert_ne!(state, XenbusState::Connected);
                    rings = false;
                    own = state;
                }
            }
            prop_assert!(!handshake.is_running() || rings);
            if matches!(back, XenbusState::Closing | XenbusState::Closed) {
                prop_assert!(!rings, "nothing is kept from one who is gone");
            }
        }
        // From anywhere, a backend that closes and opens again is met.
        for back in [XenbusState::Closed, XenbusState::Closed, XenbusState::InitWait, XenbusState::Connected] {
            for _ in 0..3 {
                match handshake.step(own, back, true) {
                    Step::Connect => own = XenbusState::Connected,
                    Step::End(state) => own = state,
                    Step::Run | Step::Stay => {}
                }
            }
        }
        prop_assert!(handshake.is_running());
    }

    #[test]
    fn any_keys_are_survived(keys in prop::collection::vec(("[a-z-]{0,30}", "\\PC{0,40}"), 0..10)) {
        let mut all = Keys::new("/b").with("feature-rx-copy", 1).with("mac", "00:16:3e:00:00:01");
        all.extend(keys);
        let _ = Offer::parse(&all);
        let _ = Identity::parse(&all, &all);
    }
}

/// Linux's netback: it looks at what the frontend's state is now, and writes each state on its way to its answer.
struct Linux {
    /// What stands in the store.
    back: XenbusState,
    path: VecDeque<XenbusState>,
}

impl Linux {
    /// Writes one state, if it has one to write.
    fn turn(&mut self, front: XenbusState) {
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
fn linux_is_met_after_a_frontend_that_was_killed() {
    for left in [XenbusState::InitWait, XenbusState::Connected, XenbusState::Closing, XenbusState::Closed] {
        // Which end has its turn, at first; then both by turns.
        for turns in 0..1u32 << 12 {
            let mut linux = Linux { back: left, path: VecDeque::new() };
            let (mut handshake, mut own, mut connects) = (Handshake::default(), XenbusState::Initialising, 0);
            for turn in 0..40 {
                if turn < 12 && turns >> turn & 1 == 0 || turn >= 12 && turn % 2 == 0 {
                    linux.turn(own);
                    continue;
                }
                match handshake.step(own, linux.back, true) {
                    Step::Connect => (own, connects) = (XenbusState::Connected, connects + 1),
                    Step::End(state) => own = state,
                    Step::Run | Step::Stay => {}
                }
            }
            assert!(handshake.is_running() && connects == 1, "{left}, {turns:#b}: {own} and {}", linux.back);
        }
    }
}

#[test]
fn keys_say_what_is_wrong() {
    let none = Keys::new("/b");
    assert!(Offer::parse(&none).unwrap_err().to_string().contains("feature-rx-copy"));
    let back = Keys::new("/b").with("mtu", 9000);
    let own = |mac: &str| Keys::new("/f").with("mac", mac);
    let identity = Identity::parse(&own("00:16:3E:01:02:ff"), &back).unwrap();
    assert_eq!((identity.mac, identity.mtu), ([0, 0x16, 0x3e, 1, 2, 0xff], 9000));
    for bad in ["", "00:16:3e:01:02", "00:16:3e:01:02:03:04", "0:16:3e:01:02:03", "zz:16:3e:01:02:03"] {
        assert!(Identity::parse(&own(bad), &back).is_err(), "{bad}");
    }
    assert!(Identity::parse(&own("00:16:3e:00:00:01"), &Keys::new("/b").with("mtu", 67)).is_err());
}
