//! Random scripts through the harness that the fuzz targets also run.

mod harness;

use proptest::prelude::*;

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn transmit_survives_and_answers_once(script in prop::collection::vec(any::<u8>(), 0..3000)) {
        harness::tx(&script);
    }

    #[test]
    fn receive_fills_in_order(script in prop::collection::vec(any::<u8>(), 0..3000)) {
        harness::rx(&script);
    }
}
