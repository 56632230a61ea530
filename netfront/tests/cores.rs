//! Random scripts through the harness that the fuzz targets also run.

mod harness;

use proptest::prelude::*;

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn transmit_buffers_have_one_owner(script in prop::collection::vec(any::<u8>(), 0..3000)) {
        harness::tx(&script);
    }

    #[test]
    fn receive_buffers_come_back_once(script in prop::collection::vec(any::<u8>(), 0..3000)) {
        harness::rx(&script);
    }
}
