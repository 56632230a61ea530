//! A hostile peer against both halves of every ring: the harness of the property tests in `ring-abi/tests/hostile.rs`.
#![no_main]

#[path = "../../ring-abi/tests/common/mod.rs"]
mod common;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| common::hostile::run(bytes));
