//! What vifs' keys say.

use netfront::handshake::{Identity, Negotiated};
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
