//! The file by which a store that was killed is succeeded: any bytes as a file, and as one frame of a file that is whole otherwise.
#![no_main]

use xenstore::server::{Core, Quotas, check_journal};

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    check_journal(bytes);
    let mut file = Core::new(Quotas::default()).keep().to_bytes();
    file.extend((bytes.len() as u32).to_le_bytes());
    file.extend(crc32fast::hash(bytes).to_le_bytes());
    file.extend(bytes);
    check_journal(&file);
});
