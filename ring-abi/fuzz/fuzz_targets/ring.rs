//! The harness of `tests/hostile.rs`, driven by libFuzzer.
#![no_main]

#[path = "../../tests/common/mod.rs"]
mod common;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| common::hostile::run(bytes));
