//! The backend's handshake against any order of states, and against a frontend that follows the protocol.

use netback::handshake::{Action, EventPorts, Handshake, Negotiated, backend_keys};
use proptest::prelude::*;
use ring_abi::netif::key;
use ring_abi::xenbus::XenbusState::{self, *};
use xenbus::Keys;

fn any_state() -> impl Strategy<Value = XenbusState> {
    prop::sample::select(XenbusState::ALL.to_vec())
}

/// Carries out the next action as the device does; `false` if there was none.
fn step(handshake: &mut Handshake, own: &mut XenbusState, front: XenbusState, online: bool) -> bool {
    match handshake.step(*own, front, online) {
        Action::Wait => return false,
        Action::Advertise => *own = InitWait,
        Action::Connect => {
            handshake.set_connected(true);
            *own = Connected;
        }
        Action::Close(state) => *own = state,
    }
    true
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn handshake_after_any_states_connects_and_closes(
        found in any_state(),
        states in prop::collection::vec((any_state(), any::<bool>(), prop::option::of(any_state())), 1..60),
    ) {
        let mut handshake = Handshake::default();
        let mut own = found;
        for (front, online, toolstack) in states {
            own = toolstack.unwrap_or(own);
            let mut steps = 0;
            while step(&mut handshake, &mut own, front, online) {
                steps += 1;
                prop_assert!(steps < 5, "endless actions at own {own}, front {front}");
            }
            let alive = matches!(front, Initialised | Connected);
            prop_assert!(!handshake.is_connected() || alive || !matches!(front, Closing | Closed | Initialising));
        }
        // A frontend that closes and reconnects is always connected.
        for front in [Closed, Initialising, Connected] {
            for _ in 0..4 {
                step(&mut handshake, &mut own, front, true);
            }
        }
        prop_assert!(handshake.is_connected() && own == Connected);
        // A device that the toolstack closes is closed once the frontend follows.
        own = Closing;
        for front in [Connected, Closing, Closed] {
            for _ in 0..4 {
                step(&mut handshake, &mut own, front, false);
            }
        }
        prop_assert!(!handshake.is_connected() && own == Closed);
    }

    #[test]
    fn parse_of_any_keys_does_not_panic(keys in prop::collection::vec(("[a-z-]{0,30}", "\\PC{0,40}"), 0..10)) {
        let mut all = Keys::new("/f").with(key::REQUEST_RX_COPY, 1).with(key::TX_RING_REF, 8);
        all.extend(keys);
        let _ = Negotiated::parse(&all, &all, true);
    }
}

#[test]
fn restarted_backend_closes_before_it_connects() {
    let mut handshake = Handshake::default();
    let mut own = Connected;
    assert!(step(&mut handshake, &mut own, Connected, true));
    assert_eq!(own, Closing);
    assert!(!step(&mut handshake, &mut own, Connected, true), "connects before the frontend has closed");
    assert!(step(&mut handshake, &mut own, Closed, true));
    assert_eq!(own, Closed);
    assert!(step(&mut handshake, &mut own, Initialising, true));
    assert!(step(&mut handshake, &mut own, Connected, true));
    assert_eq!((own, handshake.is_connected()), (Connected, true));
}

/// Keys of a frontend with an event channel for each ring, and TCP segmentation over IPv4.
fn front_keys() -> Keys {
    Keys::new("/f")
        .with(key::REQUEST_RX_COPY, 1)
        .with(key::TX_RING_REF, 8)
        .with(key::RX_RING_REF, 9)
        .with(key::EVENT_CHANNEL_TX, 3)
        .with(key::EVENT_CHANNEL_RX, 4)
        .with(key::FEATURE_SG, 1)
        .with(key::FEATURE_GSO_TCPV4, 1)
}

#[test]
fn backend_keys_advertise_copying_and_one_queue() {
    let keys = backend_keys(true);
    let value = |key| keys.get(key).unwrap_or("missing").to_owned();
    assert_eq!((value(key::FEATURE_RX_COPY), value(key::FEATURE_RX_FLIP)), ("1".into(), "0".into()));
    assert_eq!(value(key::MULTI_QUEUE_MAX_QUEUES), "1");
    assert_eq!(keys.get(key::FEATURE_CTRL_RING), None);
}

#[test]
fn parse_of_frontend_keys_gives_caps_and_events() {
    let own = Keys::new("/b").with(key::MTU, 9000);
    let negotiated = Negotiated::parse(&front_keys(), &own, true).unwrap();
    assert!(matches!(negotiated.events, EventPorts::Split { .. }));
    let caps = negotiated.caps;
    assert!(caps.csum_v4 && !caps.csum_v6 && caps.gso_v4 && !caps.gso_v6);
    assert_eq!(caps.mtu, 9000);
    // Without sg a frame has one page, and there is no segmentation.
    let mut without_sg = front_keys();
    without_sg.remove(key::FEATURE_SG);
    let caps = Negotiated::parse(&without_sg, &own, true).unwrap().caps;
    assert!(caps.max_len() <= 4096 && !caps.gso_v4);
}

#[test]
fn parse_of_wrong_keys_names_the_key() {
    let wrong = [(key::REQUEST_RX_COPY, "0"), (key::MULTI_QUEUE_NUM_QUEUES, "2"), (key::TX_RING_REF, "x")];
    for (key, value) in wrong {
        let mut keys = front_keys();
        keys.set(key, value);
        let error = Negotiated::parse(&keys, &Keys::new("/b"), true).unwrap_err();
        assert!(error.to_string().contains(key), "{error}");
    }
    let own = Keys::new("/b").with(key::MTU, 67);
    let error = Negotiated::parse(&front_keys(), &own, true).unwrap_err();
    assert!(error.to_string().contains("68 to 65521"), "{error}");
}
