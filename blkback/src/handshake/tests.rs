//! The state machine on known paths, and on random ones.

use super::*;
use XenbusState::{Closed, Closing, Connected, InitWait, Initialised, Initialising, Unknown};
use proptest::prelude::*;

fn front_keys() -> Keys {
    Keys::new("/f").with(key::RING_REF, 8).with(key::EVENT_CHANNEL, 3).with(key::STATE, 3)
}

fn view(own: XenbusState, front: XenbusState) -> DeviceState {
    let other = if own == Connected { Keys::new("/f") } else { front_keys() };
    DeviceState { own: Keys::new("/b"), own_state: own, other_state: front, other, online: true }
}

fn step(hs: &mut Handshake, view: &DeviceState, ring: Ring) -> Action {
    hs.update(view);
    hs.next(view, ring)
}

fn connect() -> Action {
    Action::Connect(Negotiated {
        abi: Abi::X86_64,
        refs: vec![GrantRef(8)],
        port: EventPort(3),
        persistent: false,
    })
}

#[test]
fn handshake_of_conforming_frontend_connects_and_closes() {
    let mut hs = Handshake::new(&view(Initialising, Initialising));
    assert_eq!(step(&mut hs, &view(Initialising, Initialising), Ring::None), Action::Offer);
    assert_eq!(step(&mut hs, &view(InitWait, Initialising), Ring::None), Action::Wait);
    assert_eq!(step(&mut hs, &view(InitWait, Initialised), Ring::None), connect());
    assert_eq!(step(&mut hs, &view(InitWait, Initialised), Ring::Running), Action::Connected);
    assert_eq!(step(&mut hs, &view(Connected, Connected), Ring::Running), Action::Wait);
    assert_eq!(step(&mut hs, &view(Connected, Closing), Ring::Running), Action::State(Closing));
    assert_eq!(step(&mut hs, &view(Closing, Closing), Ring::Running), Action::Wait);
    assert_eq!(step(&mut hs, &view(Closing, Closed), Ring::Running), Action::Disconnect);
    assert_eq!(step(&mut hs, &view(Closing, Closed), Ring::Stopping), Action::Wait);
    assert_eq!(step(&mut hs, &view(Closing, Closed), Ring::None), Action::State(Closed));
    assert_eq!(step(&mut hs, &view(Closed, Closed), Ring::None), Action::Wait);
    assert_eq!(step(&mut hs, &view(Closed, Initialising), Ring::None), Action::Offer);
}

#[test]
fn frontend_that_skips_initialised_is_connected() {
    let mut hs = Handshake::new(&view(Initialising, Connected));
    assert_eq!(step(&mut hs, &view(Initialising, Connected), Ring::None), Action::Offer);
    assert_eq!(step(&mut hs, &view(InitWait, Connected), Ring::None), connect());
    assert_eq!(step(&mut hs, &view(InitWait, Connected), Ring::Running), Action::Connected);
}

#[test]
fn successor_waits_for_new_ring_keys() {
    let found = view(Connected, Connected);
    let mut hs = Handshake::new(&found);
    assert_eq!(step(&mut hs, &found, Ring::None), Action::Offer);
    assert_eq!(hs.next(&found, Ring::None), Action::Wait);
    assert_eq!(step(&mut hs, &view(InitWait, Connected), Ring::None), Action::Wait);
    assert_eq!(step(&mut hs, &view(InitWait, Connected), Ring::None), Action::Wait);
    let mut direct = hs.clone();
    // Through Initialised, even with the same grant references.
    assert_eq!(step(&mut hs, &view(InitWait, Initialised), Ring::None), connect());
    // Directly to Connected, with other grant references.
    let mut fresh = view(InitWait, Connected);
    fresh.other.set(key::EVENT_CHANNEL, 4);
    assert!(matches!(step(&mut direct, &fresh, Ring::None), Action::Connect(_)));
}

#[test]
fn successor_of_backend_killed_before_connected_waits_for_its_own_offer() {
    let found = DeviceState { other: front_keys(), ..view(Connected, Initialised) };
    let mut hs = Handshake::new(&found);
    assert_eq!(step(&mut hs, &found, Ring::None), Action::Offer);
    assert_eq!(hs.next(&found, Ring::None), Action::Wait);
    assert_eq!(step(&mut hs, &view(InitWait, Initialised), Ring::None), connect());
}

#[test]
fn toolstack_unplug_closes_the_device() {
    let mut hs = Handshake::new(&view(Initialising, Initialising));
    step(&mut hs, &view(Initialising, Initialising), Ring::None);
    step(&mut hs, &view(InitWait, Initialised), Ring::Running);
    let unplug = |front| DeviceState { online: false, ..view(Closing, front) };
    assert_eq!(step(&mut hs, &unplug(Connected), Ring::Running), Action::State(Closing));
    assert_eq!(step(&mut hs, &unplug(Connected), Ring::Running), Action::Wait);
    assert_eq!(step(&mut hs, &unplug(Closing), Ring::Running), Action::Wait);
    assert_eq!(step(&mut hs, &unplug(Closed), Ring::Running), Action::Disconnect);
    assert_eq!(step(&mut hs, &unplug(Closed), Ring::None), Action::State(Closed));
    assert_eq!(
        step(&mut hs, &DeviceState { own_state: Closed, ..unplug(Initialising) }, Ring::None),
        Action::Wait
    );
}

#[test]
fn ring_that_ended_closes_the_device_which_can_reconnect() {
    let mut hs = Handshake::new(&view(Initialising, Initialising));
    step(&mut hs, &view(Initialising, Initialising), Ring::None);
    step(&mut hs, &view(InitWait, Initialised), Ring::Running);
    assert_eq!(step(&mut hs, &view(Connected, Connected), Ring::Ended), Action::State(Closing));
    assert_eq!(step(&mut hs, &view(Closing, Connected), Ring::None), Action::Wait);
    assert_eq!(step(&mut hs, &view(Closing, Closed), Ring::None), Action::State(Closed));
    assert_eq!(step(&mut hs, &view(Closed, Initialising), Ring::None), Action::Offer);
}

#[test]
fn invalid_keys_are_refused_by_name() {
    for (key, value, text) in [
        (key::RING_REF, "x", "/f/ring-ref: found \"x\", expected u32"),
        (key::EVENT_CHANNEL, "-1", "/f/event-channel: found \"-1\", expected u32"),
        (key::PROTOCOL, "arm-abi", "/f/protocol: found \"arm-abi\", expected x86_64-abi or x86_32-abi"),
        (key::RING_PAGE_ORDER, "5", "/f/ring-page-order: found \"5\", expected a number from 0 to 4"),
        (key::RING_PAGE_ORDER, "1", "/f/ring-ref0: missing, expected u32"),
        (key::NUM_RING_PAGES, "3", "/f/num-ring-pages: found \"3\", expected 1, 2, 4, 8 or 16"),
        (key::MULTI_QUEUE_NUM_QUEUES, "2", "/f/multi-queue-num-queues: found \"2\", expected 1"),
    ] {
        let error = Negotiated::from_keys(&front_keys().with(key, value)).unwrap_err().to_string();
        assert!(error.starts_with(text), "{error}");
    }
    let mut hs = Handshake::new(&view(Initialising, Initialising));
    step(&mut hs, &view(Initialising, Initialising), Ring::None);
    let mut wrong = view(InitWait, Initialised);
    wrong.other.remove(key::EVENT_CHANNEL);
    assert!(matches!(step(&mut hs, &wrong, Ring::None), Action::Refuse(_)));
    wrong.own_state = Closing;
    assert_eq!(step(&mut hs, &wrong, Ring::None), Action::Wait);
}

#[test]
fn ring_page_order_selects_the_ring_keys() {
    let keys = Keys::new("/f").with(key::EVENT_CHANNEL, 3).with(key::PROTOCOL, key::PROTOCOL_X86_32);
    let paged = keys.clone().with(key::RING_PAGE_ORDER, 1).with("ring-ref0", 9).with("ring-ref1", 8);
    let negotiated = Negotiated::from_keys(&paged).unwrap();
    assert_eq!((negotiated.abi, negotiated.refs), (Abi::X86_32, vec![GrantRef(9), GrantRef(8)]));
    let one = keys.with(key::RING_PAGE_ORDER, 0).with("ring-ref0", 7);
    assert_eq!(Negotiated::from_keys(&one).unwrap().refs, [GrantRef(7)]);
}

fn any_state() -> impl Strategy<Value = XenbusState> {
    (0..9u8).prop_map(|n| XenbusState::from_u8(n).unwrap_or(Unknown))
}

fn any_keys() -> impl Strategy<Value = Keys> {
    let key = prop::sample::select(vec![
        key::RING_REF,
        "ring-ref0",
        "ring-ref1",
        key::EVENT_CHANNEL,
        key::RING_PAGE_ORDER,
        key::NUM_RING_PAGES,
        key::PROTOCOL,
        key::MULTI_QUEUE_NUM_QUEUES,
    ]);
    let value = prop_oneof!["[0-9]{1,12}", "x86_(32|64)-abi", "\\PC{0,8}", Just("1".to_owned())];
    prop::collection::vec((key, value), 0..8).prop_map(|pairs| {
        let mut keys = Keys::new("/f");
        keys.extend(pairs);
        keys
    })
}

#[derive(Clone, Debug)]
struct Input {
    front: XenbusState,
    keys: Keys,
    online: bool,
    toolstack: Option<XenbusState>,
    ring_ends: bool,
    connect_fails: bool,
}

fn any_input() -> impl Strategy<Value = Input> {
    let toolstack = prop::option::weighted(0.1, any_state());
    (any_state(), any_keys(), prop::bool::weighted(0.9), toolstack, any::<[bool; 2]>()).prop_map(
        |(front, keys, online, toolstack, [ring_ends, connect_fails])| Input {
            front,
            keys,
            online,
            toolstack,
            ring_ends,
            connect_fails,
        },
    )
}

proptest! {
    /// Whatever states and keys both ends write: no second connection, every sequence of actions ends, and a frontend
    /// that reconnects in the end is served.
    #[test]
    fn any_sequence_of_states_never_connects_twice_and_recovers(start in any_state(), inputs in prop::collection::vec(any_input(), 0..40)) {
        let first = DeviceState { own_state: start, other_state: Initialising, online: true, ..DeviceState::default() };
        let mut hs = Handshake::new(&first);
        let mut own = start;
        let mut ring = Ring::None;
        for s in inputs.into_iter().chain(recovery()) {
            ring = match ring {
                Ring::Stopping => Ring::None,
                Ring::Running if s.ring_ends => Ring::Ended,
                other => other,
            };
            own = s.toolstack.unwrap_or(own);
            let keys = if own == Connected { Keys::new("/f") } else { s.keys };
            let view = DeviceState { own: Keys::new("/b"), own_state: own, other_state: s.front, other: keys, online: s.online };
            let mut actions = 0;
            hs.update(&view);
            loop {
                actions += 1;
                prop_assert!(actions < 10, "the actions do not end");
                match hs.next(&view, ring) {
                    Action::Wait => break,
                    Action::Offer => own = InitWait,
                    Action::Connected => {
                        prop_assert_eq!(ring, Ring::Running);
                        own = Connected;
                    }
                    Action::State(state) => own = state,
                    Action::Refuse(_) => own = Closing,
                    Action::Disconnect if ring == Ring::Ended => {
                        hs.failed();
                        ring = Ring::None;
                    }
                    Action::Disconnect => {
                        prop_assert_eq!(ring, Ring::Running, "disconnected twice");
                        ring = Ring::Stopping;
                    }
                    Action::Connect(t) => {
                        prop_assert_ne!(ring, Ring::Running, "connected twice");
                        prop_assert_ne!(ring, Ring::Stopping, "connected while stopping");
                        prop_assert!(t.refs.len().is_power_of_two() && t.refs.len() <= MAX_PAGES);
                        if s.connect_fails {
                            hs.failed();
                            own = Closing;
                        } else {
                            ring = Ring::Running;
                        }
                    }
                }
                if ring == Ring::Ended && hs.state() != Connected {
                    ring = Ring::None;
                }
            }
        }
        prop_assert_eq!((own, ring), (Connected, Ring::Running));
    }
}

/// A conforming frontend that closes and connects again.
fn recovery() -> impl Iterator<Item = Input> {
    [Closed, Closed, Closed, Initialising, Initialising, Initialised, Connected].into_iter().map(|front| {
        Input {
            front,
            keys: front_keys(),
            online: true,
            toolstack: None,
            ring_ends: false,
            connect_fails: false,
        }
    })
}
