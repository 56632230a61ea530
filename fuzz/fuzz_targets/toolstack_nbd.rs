//! A client of a guest's exported disk that sends any bytes in any pieces: requests that reach the disk are within it, and what waits for
//! the client is bounded.
#![no_main]

use toolstack::nbd::{Export, Op, Session};

/// Bytes that one client may have waiting, with what one message adds.
const MOST: usize = 128 << 20;

libfuzzer_sys::fuzz_target!(|input: (bool, Vec<Vec<u8>>)| {
    let (read_only, pieces) = input;
    let export = Export { name: "xvda".into(), size: 1 << 20, block: 512, read_only, trim: true };
    let mut session = Session::new();
    let mut id = 0;
    let mut waiting = 0;
    for piece in pieces {
        if !session.wants_input() {
            break;
        }
        session.receive(&piece);
        while let Some(op) = session.next(&export, id) {
            let (offset, len) = match &op {
                Op::Read { offset, len }
                | Op::Trim { offset, len, .. }
                | Op::WriteZeroes { offset, len, .. } => (*offset, u64::from(*len)),
                Op::Write { offset, data, .. } => (*offset, data.len() as u64),
                Op::Flush => (0, 0),
            };
            assert!(offset.checked_add(len).is_some_and(|end| end <= export.size), "{op:?}");
            assert!(
                !read_only || !matches!(op, Op::Write { .. } | Op::Trim { .. } | Op::WriteZeroes { .. }),
                "{op:?}"
            );
            let data = if let Op::Read { len, .. } = op { vec![0; len as usize] } else { Vec::new() };
            waiting += data.len();
            assert!(waiting <= MOST);
            assert!(session.complete(id, Ok(data)) && !session.has(id));
            id += 1;
        }
        // A client that reads half of what it could.
        let sent = session.unsent().len() / 2;
        session.sent(sent);
        waiting = waiting.saturating_sub(sent);
    }
});
