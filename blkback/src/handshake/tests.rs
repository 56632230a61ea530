//! What vbds' keys say.

use super::*;
use crate::engine::DiscardLimits;
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
        (key::MULTI_QUEUE_NUM_QUEUES, "2", "/f/multi-queue-num-queues: found \"2\", expected 1 to what"),
        (key::MULTI_QUEUE_NUM_QUEUES, "0", "/f/multi-queue-num-queues: found \"0\", expected 1 to what"),
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
    assert_eq!((two.abi, &two.queues[0].refs), (Abi::X86_32, &vec![GrantRef(9), GrantRef(8)]));
    let one = keys.with(key::RING_PAGE_ORDER, 0).with("ring-ref0", 7);
    assert_eq!(negotiated(&one).unwrap().queues[0].refs, [GrantRef(7)]);
    // What an earlier ring of more pages has left is not looked at.
    let left = one.with(key::RING_REF, 8);
    assert_eq!(negotiated(&left).unwrap().queues[0].refs, [GrantRef(8)]);
}

fn backend_of(queues: u32) -> Keys {
    Keys::new("/b").with(key::MULTI_QUEUE_MAX_QUEUES, queues)
}

/// A frontend with queues of one page each, of grants 8, 9, ...
fn front_of(queues: u32) -> Keys {
    (0..queues).fold(Keys::new("/f").with(key::MULTI_QUEUE_NUM_QUEUES, queues), |keys, queue| {
        keys.with(format!("queue-{queue}/ring-ref"), 8 + queue)
            .with(format!("queue-{queue}/event-channel"), 3 + queue)
    })
}

#[test]
fn queues_are_read_from_their_directories_and_are_no_more_than_offered() {
    let two = Negotiated::from_keys(&backend_of(2), &front_of(2)).unwrap();
    let queue = |gref, port| QueueInfo { refs: vec![GrantRef(gref)], port: EventPort(port) };
    assert_eq!(two.queues, [queue(8, 3), queue(9, 4)]);
    assert_ne!(two.describe(0), two.describe(1));
    let error = Negotiated::from_keys(&backend_of(2), &front_of(3)).unwrap_err().to_string();
    assert!(error.starts_with("/f/multi-queue-num-queues: found \"3\""), "{error}");
    // However many another backend has offered.
    assert!(Negotiated::from_keys(&backend_of(1 << 20), &front_of(MAX_QUEUES + 1)).is_err());
    // A single queue has its keys at the top.
    let one =
        Negotiated::from_keys(&backend_of(2), &front_keys().with(key::MULTI_QUEUE_NUM_QUEUES, 1)).unwrap();
    assert_eq!((one.queues.len(), one.describe(0)), (1, "X86_64 ring of grants [8], event channel 3".into()));
}

#[test]
fn invalid_keys_of_one_queue_are_refused_by_name() {
    for (name, value, text) in [
        ("queue-1/ring-ref", None, "/f/queue-1/ring-ref: missing, expected u32"),
        ("queue-1/event-channel", None, "/f/queue-1/event-channel: missing, expected u32"),
        ("queue-0/event-channel", Some("x"), "/f/queue-0/event-channel: found \"x\""),
        (
            "queue-1/ring-ref",
            Some("8"),
            "/f/queue-1/ring-ref: found \"8\", expected a page that is granted for no",
        ),
        (key::RING_PAGE_ORDER, Some("5"), "/f/ring-page-order: found \"5\""),
        (key::RING_PAGE_ORDER, Some("1"), "/f/queue-0/ring-ref0: missing"),
    ] {
        let mut keys = front_of(2);
        match value {
            Some(value) => drop(keys.set(name, value)),
            None => drop(keys.remove(name)),
        }
        let error = Negotiated::from_keys(&backend_of(2), &keys).unwrap_err().to_string();
        assert!(error.starts_with(text), "{error}");
    }
}

#[test]
fn rings_of_several_pages_share_none() {
    let mut keys = front_of(2).with(key::RING_PAGE_ORDER, 1);
    keys.extend([("queue-0/ring-ref0", 8), ("queue-0/ring-ref1", 9)]);
    keys.extend([("queue-1/ring-ref0", 10), ("queue-1/ring-ref1", 9)]);
    let error = Negotiated::from_keys(&backend_of(2), &keys).unwrap_err().to_string();
    assert!(error.starts_with("/f/queue-1/ring-ref1: found \"9\""), "{error}");
    keys.set("queue-1/ring-ref1", 11);
    let two = Negotiated::from_keys(&backend_of(2), &keys).unwrap();
    assert_eq!(two.queues[1].refs, [GrantRef(10), GrantRef(11)]);
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
        "queue-0/ring-ref",
        "queue-0/event-channel",
        "queue-1/ring-ref",
        "queue-1/event-channel",
    ]);
    let value = prop_oneof!["[0-9]{1,12}", "x86_(32|64)-abi", "\\PC{0,8}", Just("1".to_owned())];
    prop::collection::vec((key, value), 0..12).prop_map(|pairs| {
        let mut keys = Keys::new("/f");
        keys.extend(pairs);
        keys
    })
}

proptest! {
    #[test]
    fn any_keys_give_a_ring_within_bounds_or_an_error(keys in any_keys()) {
        if let Ok(negotiated) = Negotiated::from_keys(&backend_of(4), &keys) {
            prop_assert!((1..=4).contains(&negotiated.queues.len()));
            for queue in &negotiated.queues {
                let pages = queue.refs.len();
                prop_assert!(pages.is_power_of_two() && pages <= MAX_PAGES);
            }
        }
    }
}

#[test]
fn keys_of_discard_are_there_where_the_disk_supports_it() {
    let discard = |disk: &DiskInfo| {
        let keys = disk_keys(disk);
        [key::FEATURE_DISCARD, key::DISCARD_GRANULARITY, key::DISCARD_ALIGNMENT]
            .map(|key| keys.get(key).map(str::to_owned))
    };
    assert_eq!(discard(&DiskInfo::new(8)), [None, None, None]);
    let limits = DiscardLimits { granularity: 4096, alignment: 512 };
    let disk = DiskInfo { discard: Some(limits), ..DiskInfo::new(8) };
    assert_eq!(discard(&disk), ["1", "4096", "512"].map(|value| Some(value.to_owned())));
}

#[test]
fn zeroes_are_detected_where_the_backends_directory_says_so() {
    let of =
        |value: &str| Negotiated::from_keys(&Keys::new("/b").with(key::DETECT_ZEROES, value), &front_keys());
    assert!(!negotiated(&front_keys()).unwrap().detect_zeroes);
    assert!(!negotiated(&front_keys().with(key::DETECT_ZEROES, "unmap")).unwrap().detect_zeroes);
    assert_eq!(["off", "unmap"].map(|value| of(value).unwrap().detect_zeroes), [false, true]);
    assert_eq!(of("on").unwrap_err().to_string(), r#"/b/detect-zeroes: found "on", expected off or unmap"#);
}
