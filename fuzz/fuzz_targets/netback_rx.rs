//! A hostile frontend against the network backend's receive ring: the harness of the property tests in
//! `netback/tests/cores.rs`.
#![no_main]

#[expect(dead_code, reason = "the harness also covers the other ring")]
#[path = "../../netback/tests/harness/mod.rs"]
mod harness;

libfuzzer_sys::fuzz_target!(|script: &[u8]| harness::rx(script));
