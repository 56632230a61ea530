//! The backend's handshake against frontends of any mind, and against one that keeps to the rules.

use netback::handshake::{Agreed, Events, Handshake, Step, offer};
use proptest::prelude::*;
use ring_abi::xenbus::XenbusState::{self, *};
use xenstore::Keys;

fn any_state() -> impl Strategy<Value = XenbusState> {
    prop::sample::select(XenbusState::ALL.to_vec())
}

/// Takes a step, as the device does; whether there was one.
fn step(handshake: &mut Handshake, own: &mut XenbusState, front: XenbusState, online: bool) -> bool {
    match handshake.step(*own, front, online) {
        Step::Stay => return false,
        Step::Offer => *own = InitWait,
        Step::Connect => {
            handshake.set_connected(true);
            *own = Connected;
        }
        Step::Close(state) => *own = state,
    }
    true
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn any_order_of_states_is_survived(
        found in any_state(),
        looks in prop::collection::vec((any_state(), any::<bool>(), prop::option::of(any_state())), 1..60),
    ) {
        let (mut handshake, mut own) = (Handshake::default(), found);
        for (front, online, toolstack) in looks {
            own = toolstack.unwrap_or(own);
            let mut steps = 0;
            while step(&mut handshake, &mut own, front, online) {
                steps += 1;
                prop_assert!(steps < 5, "no end of steps at own {own}, front {front}");
            }
            let alive = matches!(front, Initialised | Connected);
            prop_assert!(!handshake.is_connected() || alive || !matches!(front, Closing | Closed | Initialising));
        }
        // A frontend that closes and begins anew is always served.
        for front in [Closed, Initialising, Connected] {
            for _ in 0..4 {
                step(&mut handshake, &mut own, front, true);
            }
        }
        prop_assert!(handshake.is_connected() && own == Connected);
        // And a toolstack that wants the device closed gets that, once the frontend follows.
        own = Closing;
        for front in [Connected, Closing, Closed] {
            for _ in 0..4 {
                step(&mut handshake, &mut own, front, false);
            }
        }
        prop_assert!(!handshake.is_connected() && own == Closed);
    }

    #[test]
    fn any_keys_are_survived(keys in prop::collection::vec(("[a-z-]{0,30}", "\\PC{0,40}"), 0..10)) {
        let mut all = Keys::new("/f").with("request-rx-copy", 1).with("tx-ring-ref", 8);
        all.extend(keys);
        let _ = Agreed::parse(&all, &all, true);
    }
}

#[test]
fn a_restarted_backend_closes_before_it_opens() {
    let (mut handshake, mut own) = (Handshake::default(), Connected);
    assert!(step(&mut handshake, &mut own, Connected, true));
    assert_eq!(own, Closing);
    assert!(!step(&mut handshake, &mut own, Connected, true), "the frontend has to follow");
    assert!(step(&mut handshake, &mut own, Closed, true));
    assert_eq!(own, Closed);
    assert!(step(&mut handshake, &mut own, Initialising, true));
    assert!(step(&mut handshake, &mut own, Connected, true));
    assert_eq!((own, handshake.is_connected()), (Connected, true));
}

#[test]
fn what_is_offered_and_agreed() {
    let offered = offer(true);
    let value = |key| offered.get(key).unwrap_or("missing").to_owned();
    assert_eq!((value("feature-rx-copy"), value("feature-rx-flip")), ("1".into(), "0".into()));
    assert_eq!(value("multi-queue-max-queues"), "1");
    assert_eq!(offered.get("feature-ctrl-ring"), None);
    let front = Keys::new("/f")
        .with("request-rx-copy", 1)
        .with("tx-ring-ref", 8)
        .with("rx-ring-ref", 9)
        .with("event-channel-tx", 3)
        .with("event-channel-rx", 4)
        .with("feature-sg", 1)
        .with("feature-gso-tcpv4", 1);
    let agreed = Agreed::parse(&front, &Keys::new("/b").with("mtu", 9000), true).unwrap();
    assert!(matches!(agreed.events, Events::Split { .. }));
    assert!(agreed.caps.csum_v4 && !agreed.caps.csum_v6 && agreed.caps.gso_v4 && !agreed.caps.gso_v6);
    assert_eq!(agreed.caps.mtu, 9000);
    // Without sg a frame has one page, and without that no segmentation.
    let mut plain = front.clone();
    plain.remove("feature-sg");
    let caps = Agreed::parse(&plain, &Keys::new("/b").with("mtu", 9000), true).unwrap().caps;
    assert!(caps.max_len() <= 4096 && !caps.gso_v4);
    for (key, value) in [("request-rx-copy", "0"), ("multi-queue-num-queues", "2"), ("tx-ring-ref", "x")] {
        let mut bad = front.clone();
        bad.set(key, value);
        let error = Agreed::parse(&bad, &Keys::new("/b"), true).unwrap_err();
        assert!(error.to_string().contains(key), "{error}");
    }
}
