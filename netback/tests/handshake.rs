//! What vifs' keys say.

use netback::handshake::{EventPorts, Negotiated, Offered, backend_keys};
use proptest::prelude::*;
use ring_abi::netif::key;
use xenbus::Keys;

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn any_keys_are_negotiated_or_refused(keys in prop::collection::vec(("[a-z-]{0,30}", "\\PC{0,40}"), 0..10)) {
        let mut all = Keys::new("/f").with(key::REQUEST_RX_COPY, 1).with(key::TX_RING_REF, 8);
        all.extend(keys);
        let _ = Negotiated::from_keys(&all, &all);
    }
}

/// The backend's keys, as it advertises them, and its mtu.
fn own(mtu: u32) -> Keys {
    let mut own = Keys::new("/b").with(key::MTU, mtu);
    own.extend(backend_keys(Offered { gso: true, split: false, flip: false }).iter());
    own
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
    let keys = backend_keys(Offered { gso: true, split: false, flip: false });
    let value = |key| keys.get(key).unwrap_or("missing").to_owned();
    assert_eq!((value(key::FEATURE_RX_COPY), value(key::FEATURE_RX_FLIP)), ("1".into(), "0".into()));
    assert_eq!(value(key::MULTI_QUEUE_MAX_QUEUES), "1");
    assert_eq!(keys.get(key::FEATURE_CTRL_RING), None);
}

#[test]
fn frontend_keys_give_caps_and_events() {
    let negotiated = Negotiated::from_keys(&own(9000), &front_keys()).unwrap();
    assert!(matches!(negotiated.events, EventPorts::Split { .. }));
    let caps = negotiated.caps;
    assert!(caps.csum_v4 && !caps.csum_v6 && caps.gso_v4 && !caps.gso_v6);
    assert_eq!(caps.mtu, 9000);
    // Without sg a frame has one page, and there is no segmentation.
    let mut without_sg = front_keys();
    without_sg.remove(key::FEATURE_SG);
    let caps = Negotiated::from_keys(&own(9000), &without_sg).unwrap().caps;
    assert!(caps.max_len() <= 4096 && !caps.gso_v4);
    // What is not advertised is not used.
    let mut without_gso = own(1500);
    without_gso.set(key::FEATURE_GSO_TCPV4, 0);
    assert!(!Negotiated::from_keys(&without_gso, &front_keys()).unwrap().caps.gso_v4);
}

#[test]
fn wrong_keys_are_refused_by_name() {
    let wrong = [(key::REQUEST_RX_COPY, "0"), (key::MULTI_QUEUE_NUM_QUEUES, "2"), (key::TX_RING_REF, "x")];
    for (key, value) in wrong {
        let mut keys = front_keys();
        keys.set(key, value);
        let error = Negotiated::from_keys(&own(1500), &keys).unwrap_err();
        assert!(error.to_string().contains(key), "{error}");
    }
    let error = Negotiated::from_keys(&own(67), &front_keys()).unwrap_err();
    assert!(error.to_string().contains("68 to 65521"), "{error}");
}

#[test]
fn frontend_without_request_rx_copy_is_refused_unless_flipping_is_offered() {
    let mut flips = front_keys();
    flips.remove(key::REQUEST_RX_COPY);
    let error = Negotiated::from_keys(&own(1500), &flips).unwrap_err();
    assert!(error.to_string().contains(key::REQUEST_RX_COPY), "{error}");
    let mut offered = own(1500);
    offered.extend(backend_keys(Offered { gso: true, split: false, flip: true }).iter());
    assert!(Negotiated::from_keys(&offered, &flips).unwrap().flips);
    assert!(!Negotiated::from_keys(&offered, &front_keys()).unwrap().flips);
}

#[test]
fn rate_is_read_as_libxl_writes_it_and_one_of_no_bytes_is_refused() {
    use bridge::RateLimits;
    use netback::handshake::{rate, rate_in};
    use std::time::Duration;
    let read = |text: &str| {
        rate(&Keys::default().with("rate", text))
            .map(|rate| rate.bytes.map(|rate| (rate.amount, rate.interval)))
    };
    assert_eq!(read("62500,50000").unwrap(), Some((62_500, Duration::from_millis(50))));
    assert_eq!(read("1,0").unwrap(), None, "no interval is no limit, as for Linux's backend");
    assert_eq!(rate(&Keys::default()).unwrap(), RateLimits::default());
    for bad in ["", "fast", "1", "1,", ",1", "-1,5", "99999999999999999999,1", "0,50000"] {
        let error = read(bad).unwrap_err().to_string();
        assert!(error.contains(&format!("{bad:?}")), "{error}");
    }
    let keys = Keys::default().with("rate-packets", "50,50000").with("rate-in", "1000,1000");
    assert_eq!(rate(&keys).unwrap().to_string(), "50 packets in 50ms");
    assert_eq!(rate_in(&keys).unwrap().to_string(), "1000 bytes in 1ms");
    for key in ["rate-in", "rate-in-packets"] {
        let error = rate_in(&Keys::default().with(key, "0,1")).unwrap_err().to_string();
        assert!(error.contains(key) && error.contains("at least one"), "{error}");
    }
}
