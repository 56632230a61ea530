//! Hostile clients against the local hypervisor's broker, by the harness of its property test; and its decoders.
#![no_main]

libfuzzer_sys::fuzz_target!(|script: &[u8]| {
    hypervisor::local::internals::hostile(script);
    let _ = hypervisor::local::internals::Request::decode(script);
    let _ = hypervisor::local::internals::Reply::decode(script);
});
