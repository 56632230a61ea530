//! Hostile clients against the store: the harness of the property tests in `xenstore/tests/hostile.rs`.
#![no_main]

#[path = "../../xenstore/tests/harness/mod.rs"]
mod harness;

libfuzzer_sys::fuzz_target!(|script: &[u8]| harness::run(script));
