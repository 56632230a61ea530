//! A hostile backend against the block frontend's request ring: the harness of the property tests in
//! `blkfront/src/queue/tests.rs`.
#![no_main]

libfuzzer_sys::fuzz_target!(|script: &[u8]| blkfront::harness::hostile(script));
