//! The file by which a broker that was killed is succeeded.
#![no_main]

use hypervisor::local::internals::Kept;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    if let Some(kept) = Kept::decode(bytes) {
        assert_eq!(Kept::decode(&kept.encode()), Some(kept));
    }
});
