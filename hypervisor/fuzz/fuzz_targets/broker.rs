//! `cargo +nightly fuzz run broker`: the harness of the property test, driven by coverage.
#![no_main]

libfuzzer_sys::fuzz_target!(|script: &[u8]| {
    hypervisor::local::internals::hostile(script);
    let _ = hypervisor::local::internals::Request::decode(script);
    let _ = hypervisor::local::internals::Reply::decode(script);
});
