//! Random scripts through the harness of the fuzz targets.

mod harness;

use proptest::prelude::*;

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn tx_with_any_requests_answers_each_once(script in prop::collection::vec(any::<u8>(), 0..3000)) {
        harness::tx(&script);
    }

    #[test]
    fn rx_with_any_requests_fills_pages_in_order(script in prop::collection::vec(any::<u8>(), 0..3000)) {
        harness::rx(&script);
    }
}
