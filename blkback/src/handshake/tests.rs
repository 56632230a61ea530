//! The state machine, walked along known paths and thrown at random.

use super::*;
use XenbusState::{Closed, Closing, Connected, InitWait, Initialised, Initialising, Unknown};
use proptest::prelude::*;

fn ring_keys() -> Keys {
    Keys::new("/f").with("ring-ref", 8).with("event-channel", 3).with("state", 3)
}

fn view(own: XenbusState, front: XenbusState) -> DeviceState {
    let other = if own == Connected { Keys::new("/f") } else { ring_keys() };
    DeviceState { own: Keys::new("/b"), own_state: own, other_state: front, other, online: true }
}

fn look(hs: &mut Handshake, view: &DeviceState, ring: Ring) -> Act {
    hs.see(view);
    hs.next(view, ring)
}

fn connect() -> Act {
    Act::Connect(Transport {
        abi: Abi::X86_64,
        refs: vec![GrantRef(8)],
        port: EventPort(3),
        persistent: false,
    })
}

#[test]
fn the_usual_life() {
    let mut hs = Handshake::new(&view(Initialising, Initialising));
    assert_eq!(look(&mut hs, &view(Initialising, Initialising), Ring::None), Act::Offer);
    assert_eq!(look(&mut hs, &view(InitWait, Initialising), Ring::None), Act::Nothing);
    assert_eq!(look(&mut hs, &view(InitWait, Initialised), Ring::None), connect());
    assert_eq!(look(&mut hs, &view(InitWait, Initialised), Ring::Running), Act::Connected);
    assert_eq!(look(&mut hs, &view(Connected, Connected), Ring::Running), Act::Nothing);
    assert_eq!(look(&mut hs, &view(Connected, Closing), Ring::Running), Act::State(Closing));
    assert_eq!(look(&mut hs, &view(Closing, Closing), Ring::Running), Act::Nothing);
    assert_eq!(look(&mut hs, &view(Closing, Closed), Ring::Running), Act::Disconnect);
    assert_eq!(look(&mut hs, &view(Closing, Closed), Ring::Stopping), Act::Nothing);
    assert_eq!(look(&mut hs, &view(Closing, Closed), Ring::None), Act::State(Closed));
    assert_eq!(look(&mut hs, &view(Closed, Closed), Ring::None), Act::Nothing);
    assert_eq!(look(&mut hs, &view(Closed, Initialising), Ring::None), Act::Offer);
}

#[test]
fn a_frontend_may_skip_initialised_and_be_early() {
    let mut hs = Handshake::new(&view(Initialising, Connected));
    assert_eq!(look(&mut hs, &view(Initialising, Connected), Ring::None), Act::Offer);
    assert_eq!(look(&mut hs, &view(InitWait, Connected), Ring::None), connect());
    assert_eq!(look(&mut hs, &view(InitWait, Connected), Ring::Running), Act::Connected);
}

#[test]
fn a_successor_waits_for_a_fresh_ring() {
    let found = view(Connected, Connected);
    let mut hs = Handshake::new(&found);
    assert_eq!(look(&mut hs, &found, Ring::None), Act::Offer);
    assert_eq!(hs.next(&found, Ring::None), Act::Nothing);
    assert_eq!(look(&mut hs, &view(InitWait, Connected), Ring::None), Act::Nothing);
    assert_eq!(look(&mut hs, &view(InitWait, Connected), Ring::None), Act::Nothing);
    let mut straight = hs.clone();
    // By way of Initialised, though with the same references again.
    assert_eq!(look(&mut hs, &view(InitWait, Initialised), Ring::None), connect());
    // Straight to Connected, with other references.
    let mut fresh = view(InitWait, Connected);
    fresh.other.set("event-channel", 4);
    assert!(matches!(look(&mut straight, &fresh, Ring::None), Act::Connect(_)));
}

#[test]
fn a_predecessor_that_was_killed_before_the_frontend_connected_is_not_taken_for_us() {
    let found = DeviceState { other: ring_keys(), ..view(Connected, Initialised) };
    let mut hs = Handshake::new(&found);
    assert_eq!(look(&mut hs, &found, Ring::None), Act::Offer);
    assert_eq!(hs.next(&found, Ring::None), Act::Nothing);
    assert_eq!(look(&mut hs, &view(InitWait, Initialised), Ring::None), connect());
}

#[test]
fn a_toolstack_closes() {
    let mut hs = Handshake::new(&view(Initialising, Initialising));
    look(&mut hs, &view(Initialising, Initialising), Ring::None);
    look(&mut hs, &view(InitWait, Initialised), Ring::Running);
    let asked = |front| DeviceState { online: false, ..view(Closing, front) };
    assert_eq!(look(&mut hs, &asked(Connected), Ring::Running), Act::State(Closing));
    assert_eq!(look(&mut hs, &asked(Connected), Ring::Running), Act::Nothing);
    assert_eq!(look(&mut hs, &asked(Closing), Ring::Running), Act::Nothing);
    assert_eq!(look(&mut hs, &asked(Closed), Ring::Running), Act::Disconnect);
    assert_eq!(look(&mut hs, &asked(Closed), Ring::None), Act::State(Closed));
    assert_eq!(
        look(&mut hs, &DeviceState { own_state: Closed, ..asked(Initialising) }, Ring::None),
        Act::Nothing
    );
}

#[test]
fn a_ring_that_ended_closes_the_device_and_it_may_open_again() {
    let mut hs = Handshake::new(&view(Initialising, Initialising));
    look(&mut hs, &view(Initialising, Initialising), Ring::None);
    look(&mut hs, &view(InitWait, Initialised), Ring::Running);
    assert_eq!(look(&mut hs, &view(Connected, Connected), Ring::Ended), Act::State(Closing));
    assert_eq!(look(&mut hs, &view(Closing, Connected), Ring::None), Act::Nothing);
    assert_eq!(look(&mut hs, &view(Closing, Closed), Ring::None), Act::State(Closed));
    assert_eq!(look(&mut hs, &view(Closed, Initialising), Ring::None), Act::Offer);
}

#[test]
fn wrong_keys_are_refused_by_name() {
    for (key, value, text) in [
        ("ring-ref", "x", "/f/ring-ref: found \"x\", expected u32"),
        ("event-channel", "-1", "/f/event-channel: found \"-1\", expected u32"),
        ("protocol", "arm-abi", "/f/protocol: found \"arm-abi\", expected x86_64-abi or x86_32-abi"),
        ("ring-page-order", "5", "/f/ring-page-order: found \"5\", expected a number from 0 to 4"),
        ("ring-page-order", "1", "/f/ring-ref0: missing, expected u32"),
        ("num-ring-pages", "3", "/f/num-ring-pages: found \"3\", expected 1, 2, 4, 8 or 16"),
        ("multi-queue-num-queues", "2", "/f/multi-queue-num-queues: found \"2\", expected 1"),
    ] {
        let error = Transport::from_keys(&ring_keys().with(key, value)).unwrap_err().to_string();
        assert!(error.starts_with(text), "{error}");
    }
    let mut hs = Handshake::new(&view(Initialising, Initialising));
    look(&mut hs, &view(Initialising, Initialising), Ring::None);
    let mut wrong = view(InitWait, Initialised);
    wrong.other.remove("event-channel");
    assert!(matches!(look(&mut hs, &wrong, Ring::None), Act::Refuse(_)));
    wrong.own_state = Closing;
    assert_eq!(look(&mut hs, &wrong, Ring::None), Act::Nothing);
}

#[test]
fn rings_of_several_pages() {
    let keys = Keys::new("/f").with("event-channel", 3).with("protocol", "x86_32-abi");
    let paged = keys.clone().with("ring-page-order", 1).with("ring-ref0", 9).with("ring-ref1", 8);
    let transport = Transport::from_keys(&paged).unwrap();
    assert_eq!((transport.abi, transport.refs), (Abi::X86_32, vec![GrantRef(9), GrantRef(8)]));
    let one = keys.with("ring-page-order", 0).with("ring-ref0", 7);
    assert_eq!(Transport::from_keys(&one).unwrap().refs, [GrantRef(7)]);
}

fn any_state() -> impl Strategy<Value = XenbusState> {
    (0..9u8).prop_map(|n| XenbusState::from_u8(n).unwrap_or(Unknown))
}

fn any_keys() -> impl Strategy<Value = Keys> {
    let key = prop::sample::select(vec![
        "ring-ref",
        "ring-ref0",
        "ring-ref1",
        "event-channel",
        "ring-page-order",
        "num-ring-pages",
        "protocol",
        "multi-queue-num-queues",
    ]);
    let value = prop_oneof!["[0-9]{1,12}", "x86_(32|64)-abi", "\\PC{0,8}", Just("1".to_owned())];
    prop::collection::vec((key, value), 0..8).prop_map(|pairs| {
        let mut keys = Keys::new("/f");
        keys.extend(pairs);
        keys
    })
}

#[derive(Clone, Debug)]
struct Seen {
    front: XenbusState,
    keys: Keys,
    online: bool,
    toolstack: Option<XenbusState>,
    ring_ends: bool,
    connect_fails: bool,
}

fn any_seen() -> impl Strategy<Value = Seen> {
    let toolstack = prop::option::weighted(0.1, any_state());
    (any_state(), any_keys(), prop::bool::weighted(0.9), toolstack, any::<[bool; 2]>()).prop_map(
        |(front, keys, online, toolstack, [ring_ends, connect_fails])| Seen {
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
    /// Whatever both ends say in whatever order: never connected twice, always back to rest, and a frontend that
    /// starts afresh in the end is served.
    #[test]
    fn any_order_of_anything(start in any_state(), seen in prop::collection::vec(any_seen(), 0..40)) {
        let first = DeviceState { own_state: start, other_state: Initialising, online: true, ..DeviceState::default() };
        let mut hs = Handshake::new(&first);
        let (mut own, mut ring) = (start, Ring::None);
        for s in seen.into_iter().chain(recovery()) {
            ring = match ring {
                Ring::Stopping => Ring::None,
                Ring::Running if s.ring_ends => Ring::Ended,
                other => other,
            };
            own = s.toolstack.unwrap_or(own);
            let keys = if own == Connected { Keys::new("/f") } else { s.keys };
            let view = DeviceState { own: Keys::new("/b"), own_state: own, other_state: s.front, other: keys, online: s.online };
            let mut acts = 0;
            hs.see(&view);
            loop {
                acts += 1;
                prop_assert!(acts < 10, "no rest");
                match hs.next(&view, ring) {
                    Act::Nothing => break,
                    Act::Offer => own = InitWait,
                    Act::Connected => {
                        prop_assert_eq!(ring, Ring::Running);
                        own = Connected;
                    }
                    Act::State(state) => own = state,
                    Act::Refuse(_) => own = Closing,
                    Act::Disconnect if ring == Ring::Ended => {
                        hs.failed();
                        ring = Ring::None;
                    }
                    Act::Disconnect => {
                        prop_assert_eq!(ring, Ring::Running, "disconnected twice");
                        ring = Ring::Stopping;
                    }
                    Act::Connect(t) => {
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

/// A frontend that closes, starts again and means well.
fn recovery() -> impl Iterator<Item = Seen> {
    [Closed, Closed, Closed, Initialising, Initialising, Initialised, Connected].into_iter().map(|front| {
        Seen {
            front,
            keys: ring_keys(),
            online: true,
            toolstack: None,
            ring_ends: false,
            connect_fails: false,
        }
    })
}
