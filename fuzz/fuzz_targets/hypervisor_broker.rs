//! Hostile clients against the local hypervisor's broker, with the harness of its property test; and any bytes against
//! its decoders.
#![no_main]

libfuzzer_sys::fuzz_target!(|script: &[u8]| {
    hypervisor::local::internals::hostile(script);
    let _ = hypervisor::local::internals::Request::decode(script);
    let _ = hypervisor::local::internals::Reply::decode(script);
});
