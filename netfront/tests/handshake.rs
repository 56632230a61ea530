//! What vifs' keys say.

use netfront::handshake::{FLIP_FROM, Identity, Negotiated, RxChoice};
use proptest::prelude::*;
use ring_abi::netif::{Mac, key};
use xenbus::Keys;

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn any_keys_are_negotiated_or_refused(keys in prop::collection::vec(("[a-z-]{0,30}", "\\PC{0,40}"), 0..10)) {
        let mut all = Keys::new("/b").with(key::FEATURE_RX_COPY, 1).with(key::MAC, "00:16:3e:00:00:01");
        all.extend(keys);
        let _ = Negotiated::from_keys(&all);
        let _ = Identity::from_keys(&all, &all);
    }
}

#[test]
fn missing_or_wrong_keys_are_refused_by_name() {
    let none = Keys::new("/b");
    assert!(Negotiated::from_keys(&none).unwrap_err().to_string().contains(key::FEATURE_RX_COPY));
    let back = Keys::new("/b").with(key::MTU, 9000);
    let own = |mac: &str| Keys::new("/f").with(key::MAC, mac);
    let identity = Identity::from_keys(&own("00:16:3E:01:02:ff"), &back).unwrap();
    assert_eq!((identity.mac, identity.mtu), (Mac([0, 0x16, 0x3e, 1, 2, 0xff]), 9000));
    for bad in ["", "00:16:3e:01:02", "00:16:3e:01:02:03:04", "0:16:3e:01:02:03", "zz:16:3e:01:02:03"] {
        let error = Identity::from_keys(&own(bad), &back).unwrap_err();
        assert!(error.to_string().contains(key::MAC), "{bad}: {error}");
    }
    let error =
        Identity::from_keys(&own("00:16:3e:00:00:01"), &Keys::new("/b").with(key::MTU, 67)).unwrap_err();
    assert!(error.to_string().contains("68 to 65521"), "{error}");
}

#[test]
fn pages_are_flipped_where_that_is_chosen_offered_and_possible() {
    let back = |copy: u8, flip: u8| {
        Keys::new("/b").with(key::FEATURE_RX_COPY, copy).with(key::FEATURE_RX_FLIP, flip)
    };
    let both = back(1, 1);
    let copies = back(1, 0);
    for (choice, keys, possible, longest, expected) in [
        (RxChoice::Auto, &both, true, FLIP_FROM, true),
        (RxChoice::Auto, &both, true, FLIP_FROM - 1, false),
        (RxChoice::Auto, &both, false, FLIP_FROM, false),
        (RxChoice::Auto, &copies, true, FLIP_FROM, false),
        (RxChoice::Auto, &back(0, 1), true, 60, true),
        (RxChoice::Flip, &both, true, 60, true),
        (RxChoice::Copy, &both, true, FLIP_FROM, false),
    ] {
        assert_eq!(choice.flips(keys, possible, longest).unwrap(), expected, "{choice:?}, {longest} bytes");
    }
    let refused = |choice: RxChoice, keys: &Keys, possible| {
        choice.flips(keys, possible, FLIP_FROM).unwrap_err().to_string()
    };
    assert!(refused(RxChoice::Flip, &copies, true).contains(key::FEATURE_RX_FLIP));
    assert!(refused(RxChoice::Flip, &both, false).contains(key::FEATURE_RX_FLIP));
    assert!(refused(RxChoice::Copy, &back(0, 1), true).contains(key::FEATURE_RX_COPY));
    assert!(refused(RxChoice::Auto, &back(0, 0), true).contains(key::FEATURE_RX_COPY));
}
