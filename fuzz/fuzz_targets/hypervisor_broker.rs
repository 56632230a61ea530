//! Hostile clients against the local hypervisor's broker, with the harness of its property test; and any bytes against
//! its decoders.
#![no_main]

/// Ignores SIGPIPE as the runtime of every Rust program does before `main`, which is libFuzzer's here: an event to a client that has gone is an
/// error of write(2).
fn ignore_broken_pipes() {
    // SAFETY: no handler is installed.
    unsafe { libc::signal(libc::SIGPIPE, libc::SIG_IGN) };
}

libfuzzer_sys::fuzz_target!(init: ignore_broken_pipes(), |script: &[u8]| {
    hypervisor::local::internals::hostile(script);
    let _ = hypervisor::local::internals::Request::decode(script);
    let _ = hypervisor::local::internals::Reply::decode(script);
});
