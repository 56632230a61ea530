//! `cargo +nightly fuzz run queue`: the harness of the property test, driven by coverage.
#![no_main]

libfuzzer_sys::fuzz_target!(|script: &[u8]| blkfront::harness::hostile(script));
