//! A hostile backend against the network frontend's transmit ring: the harness of the property tests in
//! `netfront/tests/cores.rs`.
#![no_main]

#[expect(dead_code, reason = "the harness also covers the other ring")]
#[path = "../../netfront/tests/harness/mod.rs"]
mod harness;

libfuzzer_sys::fuzz_target!(|script: &[u8]| harness::tx(script));
