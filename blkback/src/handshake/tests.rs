//! What vbds' keys say.

use super::*;
use proptest::prelude::*;

fn front_keys() -> Keys {
    Keys::new("/f").with(key::RING_REF, 8).with(key::EVENT_CHANNEL, 3).with(key::STATE, 3)
}

fn negotiated(other: &Keys) -> Result<Negotiated, KeyError> {
    Negotiated::from_keys(&Keys::new("/b"), other)
}

#[test]
fn invalid_keys_are_refused_by_name() {
    for (key, value, text) in [
        (key::RING_REF, "x", "/f/ring-ref: found \"x\", expected u32"),
        (key::EVENT_CHANNEL, "-1", "/f/event-channel: found \"-1\", expected u32"),
        (key::PROTOCOL, "ia64-abi", "/f/protocol: found \"ia64-abi\", expected x86_64-abi or x86_32-abi"),
        (key::RING_PAGE_ORDER, "5", "/f/ring-page-order: found \"5\", expected a number from 0 to 4"),
        (key::RING_PAGE_ORDER, "1", "/f/ring-ref0: missing, expected u32"),
        (key::NUM_RING_PAGES, "3", "/f/num-ring-pages: found \"3\", expected 1, 2, 4, 8 or 16"),
        (key::MULTI_QUEUE_NUM_QUEUES, "2", "/f/multi-queue-num-queues: found \"2\", expected 1"),
    ] {
        let error = negotiated(&front_keys().with(key, value)).unwrap_err().to_string();
        assert!(error.starts_with(text), "{error}");
    }
}

#[test]
fn native_layout_has_a_name_of_its_own_on_arm() {
    let on_arm = |protocol| abi(Some(protocol), key::PROTOCOL_ARM);
    assert_eq!(on_arm("arm-abi"), Some(Abi::X86_64));
    assert_eq!((on_arm("x86_64-abi"), on_arm("x86_32-abi")), (Some(Abi::X86_64), Some(Abi::X86_32)));
    assert_eq!(abi(Some("arm-abi"), key::PROTOCOL_X86_64), None);
    let native = negotiated(&front_keys().with(key::PROTOCOL, key::PROTOCOL_NATIVE)).unwrap();
    assert_eq!(native.abi, Abi::X86_64);
}

#[test]
fn ring_page_order_selects_the_ring_keys() {
    let keys = Keys::new("/f").with(key::EVENT_CHANNEL, 3).with(key::PROTOCOL, key::PROTOCOL_X86_32);
    let paged = keys.clone().with(key::RING_PAGE_ORDER, 1).with("ring-ref0", 9).with("ring-ref1", 8);
    let two = negotiated(&paged).unwrap();
    assert_eq!((two.abi, two.refs), (Abi::X86_32, vec![GrantRef(9), GrantRef(8)]));
    let one = keys.with(key::RING_PAGE_ORDER, 0).with("ring-ref0", 7);
    assert_eq!(negotiated(&one).unwrap().refs, [GrantRef(7)]);
}

#[test]
fn persistent_grants_are_used_only_if_both_ends_say_so() {
    for (own, other, both) in [(0, 1, false), (1, 0, false), (1, 1, true)] {
        let own = Keys::new("/b").with(key::FEATURE_PERSISTENT, own);
        let other = front_keys().with(key::FEATURE_PERSISTENT, other);
        assert_eq!(Negotiated::from_keys(&own, &other).unwrap().persistent, both);
    }
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

proptest! {
    #[test]
    fn any_keys_give_a_ring_within_bounds_or_an_error(keys in any_keys()) {
        if let Ok(negotiated) = negotiated(&keys) {
            let pages = negotiated.refs.len();
            prop_assert!(pages.is_power_of_two() && pages <= MAX_PAGES);
        }
    }
}
