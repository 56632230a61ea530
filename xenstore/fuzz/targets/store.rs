//! `cargo +nightly fuzz run store`, in this directory's parent.
#![no_main]

#[path = "../harness.rs"]
mod harness;

libfuzzer_sys::fuzz_target!(|script: &[u8]| harness::run(script));
