//! Frames of hostile ports through the switch and the software offloads: the harness of the property test in
//! `bridge/src/harness.rs`.
#![no_main]

libfuzzer_sys::fuzz_target!(|script: &[u8]| bridge::harness::hostile(script));
