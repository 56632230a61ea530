//! Requests to dom0's control socket, and replies to its clients, of any bytes.
#![no_main]

use toolstack::control::protocol::{Request, parse_reply};

libfuzzer_sys::fuzz_target!(|line: &[u8]| {
    if let Ok(request) = Request::parse(line) {
        let encoded = request.encode();
        let again = Request::parse(encoded.strip_suffix(b"\n").unwrap_or(&encoded)).unwrap();
        assert_eq!(format!("{request:?}"), format!("{again:?}"));
    }
    let _ = parse_reply(line);
});
