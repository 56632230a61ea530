//! Random scripts through the harness that the fuzz target also runs.

mod harness;

use proptest::collection::vec;
use proptest::prelude::*;

proptest! {
    #![proptest_config(ProptestConfig { cases: 150, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn random_bytes_do_not_break_the_store(script in vec(any::<u8>(), 0..6000)) {
        harness::run(&script);
    }

    /// Mostly well-formed messages, short, so that many of them mean something.
    #[test]
    fn random_requests_do_not_break_the_store(
        steps in vec((any::<u8>(), vec(any::<u8>(), 0..24)), 0..300)
    ) {
        let script: Vec<u8> = steps
            .into_iter()
            .flat_map(|(what, bytes)| [what, bytes.len() as u8].into_iter().chain(bytes))
            .collect();
        harness::run(&script);
    }
}
