//! A hostile frontend against the block backend's request ring: the harness of the property tests in
//! `blkback/src/queue/tests.rs`.
#![no_main]

libfuzzer_sys::fuzz_target!(|script: &[u8]| blkback::harness::hostile(script));
