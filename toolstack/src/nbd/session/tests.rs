//! Handshakes, requests, and hostile clients.

use super::super::proto::{IHAVEOPT, NBDMAGIC, OPTION_REPLY, REQUEST, Reader, export_flag, option, reply};
use super::*;
use proptest::prelude::*;

fn export() -> Export {
    Export { name: "xvda".into(), size: 1 << 20, block: 512, read_only: false, trim: true }
}

fn option_bytes(kind: u32, data: &[u8]) -> Vec<u8> {
    let mut bytes = IHAVEOPT.to_be_bytes().to_vec();
    bytes.extend(kind.to_be_bytes());
    bytes.extend((data.len() as u32).to_be_bytes());
    bytes.extend(data);
    bytes
}

fn go(name: &str) -> Vec<u8> {
    let mut data = (name.len() as u32).to_be_bytes().to_vec();
    data.extend(name.as_bytes());
    data.extend([0, 0]);
    option_bytes(option::GO, &data)
}

fn request(kind: u16, flags: u16, cookie: u64, offset: u64, len: u32, data: &[u8]) -> Vec<u8> {
    let mut bytes = REQUEST.to_be_bytes().to_vec();
    bytes.extend(flags.to_be_bytes());
    bytes.extend(kind.to_be_bytes());
    bytes.extend(cookie.to_be_bytes());
    bytes.extend(offset.to_be_bytes());
    bytes.extend(len.to_be_bytes());
    bytes.extend(data);
    bytes
}

/// Takes the session's output.
fn output(session: &mut Session) -> Vec<u8> {
    let mut bytes = Vec::new();
    while !session.unsent().is_empty() {
        bytes.extend_from_slice(session.unsent());
        session.sent(session.unsent().len());
    }
    bytes
}

/// Returns a session whose handshake is done.
fn negotiated() -> Session {
    let mut session = Session::new();
    session.receive(&3u32.to_be_bytes());
    session.receive(&go("xvda"));
    assert_eq!(session.next(&export(), 1), None);
    output(&mut session);
    session
}

/// Parses replies to options, and returns their types.
fn option_replies(bytes: &[u8]) -> Vec<u32> {
    let mut reader = Reader(bytes);
    let mut types = Vec::new();
    while let Some(magic) = reader.u64() {
        assert_eq!(magic, OPTION_REPLY);
        reader.u32().unwrap();
        types.push(reader.u32().unwrap());
        let len = reader.u32().unwrap();
        reader.take(len as usize).unwrap();
    }
    types
}

#[test]
fn go_describes_the_export_and_starts_transmission() {
    let mut session = Session::new();
    let greeting = output(&mut session);
    assert_eq!(greeting, [&NBDMAGIC.to_be_bytes()[..], &IHAVEOPT.to_be_bytes(), &[0, 3]].concat());
    session.receive(&3u32.to_be_bytes());
    session.receive(&option_bytes(option::LIST, &[]));
    session.receive(&option_bytes(99, b"what"));
    session.receive(&go("other"));
    session.receive(&option_bytes(option::GO, b"\0"));
    session.receive(&go("xvda"));
    assert_eq!(session.next(&export(), 1), None);
    let types = option_replies(&output(&mut session));
    let expected = [
        [reply::SERVER, reply::ACK].as_slice(),
        &[reply::ERR_UNSUP, reply::ERR_UNKNOWN, reply::ERR_INVALID],
        &[reply::INFO, reply::INFO, reply::ACK],
    ];
    assert_eq!(types, expected.concat());
    session.receive(&request(command::READ, 0, 7, 512, 1024, &[]));
    assert_eq!(session.next(&export(), 1), Some(Op::Read { offset: 512, len: 1024 }));
}

#[test]
fn export_name_option_replies_with_size_and_flags() {
    for (flags, zeroes) in [(3u32, 0), (1, 124)] {
        let mut session = Session::new();
        output(&mut session);
        session.receive(&flags.to_be_bytes());
        session.receive(&option_bytes(option::EXPORT_NAME, b""));
        assert_eq!(session.next(&export(), 1), None);
        let bytes = output(&mut session);
        assert_eq!(bytes[..8], (1u64 << 20).to_be_bytes());
        assert_eq!(bytes.len(), 10 + zeroes);
    }
}

#[test]
fn replies_carry_the_clients_cookie_in_any_order() {
    let mut session = negotiated();
    session.receive(&request(command::WRITE, FUA, 10, 0, 512, &[5; 512]));
    session.receive(&request(command::READ, 0, 11, 512, 512, &[]));
    session.receive(&request(command::FLUSH, 0, 12, 0, 0, &[]));
    let write = Op::Write { offset: 0, data: vec![5; 512], durable: true };
    assert_eq!(session.next(&export(), 1), Some(write));
    assert_eq!(session.next(&export(), 2), Some(Op::Read { offset: 512, len: 512 }));
    assert_eq!(session.next(&export(), 3), Some(Op::Flush));
    assert_eq!(session.next(&export(), 4), None);
    assert!(session.complete(2, Ok(vec![9; 512])));
    assert!(session.complete(1, Err(28)));
    assert!(session.complete(3, Err(110)));
    assert!(!session.complete(3, Ok(vec![])), "the request has completed already");
    let bytes = output(&mut session);
    let mut reader = Reader(&bytes);
    let mut replies = Vec::new();
    while reader.u32() == Some(REPLY) {
        let error = reader.u32().unwrap();
        let cookie = reader.u64().unwrap();
        replies.push((error, cookie));
        if cookie == 11 {
            assert_eq!(reader.take(512).unwrap(), [9; 512]);
        }
    }
    assert_eq!(replies, [(0, 11), (errno::ENOSPC, 10), (errno::EIO, 12)]);
}

#[test]
fn invalid_request_is_rejected_and_the_next_is_served() {
    let size = export().size;
    let data = [0; 512];
    let cases = [
        (request(command::READ, 0, 1, 1, 512, &[]), errno::EINVAL),
        (request(command::READ, 0, 1, 0, 0, &[]), errno::EINVAL),
        (request(command::READ, 0, 1, size, 512, &[]), errno::EINVAL),
        (request(command::READ, 0, 1, u64::MAX - 511, 512, &[]), errno::EINVAL),
        (request(command::READ, 0, 1, 0, MAX_PAYLOAD + 512, &[]), errno::EOVERFLOW),
        (request(command::WRITE, 0, 1, size - 256, 512, &data), errno::EINVAL),
        (request(command::WRITE, 0, 1, size, 512, &data), errno::ENOSPC),
        (request(command::WRITE, 8, 1, 0, 512, &data), errno::EINVAL),
        (request(command::FLUSH, 0, 1, 512, 0, &[]), errno::EINVAL),
        (request(command::TRIM, 0, 1, size - 512, 1024, &[]), errno::EINVAL),
        (request(command::TRIM, NO_HOLE, 1, 0, 512, &[]), errno::EINVAL),
        (request(command::WRITE_ZEROES, 0, 1, size - 512, 1024, &[]), errno::ENOSPC),
        (request(command::WRITE_ZEROES, 16, 1, 0, 512, &[]), errno::EINVAL),
        (request(command::WRITE, NO_HOLE, 1, 0, 512, &data), errno::EINVAL),
        (request(9, 0, 1, 0, 0, &[]), errno::ENOTSUP),
    ];
    for (bytes, error) in cases {
        let mut session = negotiated();
        session.receive(&bytes);
        session.receive(&request(command::READ, 0, 2, 0, 512, &[]));
        assert_eq!(session.next(&export(), 1), Some(Op::Read { offset: 0, len: 512 }));
        let mut expected = REPLY.to_be_bytes().to_vec();
        expected.extend(error.to_be_bytes());
        expected.extend(1u64.to_be_bytes());
        assert_eq!(output(&mut session), expected);
    }
    let read_only = Export { read_only: true, ..export() };
    let mut session = negotiated();
    session.receive(&request(command::WRITE, 0, 1, 0, 512, &data));
    assert_eq!(session.next(&read_only, 1), None);
    assert_eq!(output(&mut session)[4..8], errno::EPERM.to_be_bytes());
}

#[test]
fn trim_and_zeroes_are_advertised_and_taken_where_the_export_has_them() {
    let zeroes = request(command::WRITE_ZEROES, FUA | NO_HOLE, 1, 512, u32::MAX - 511, &[]);
    let large = Export { size: 1 << 40, ..export() };
    let mut session = negotiated();
    session.receive(&zeroes);
    session.receive(&request(command::TRIM, FUA, 2, 0, 1 << 31, &[]));
    let taken = Op::WriteZeroes { offset: 512, len: u32::MAX - 511, durable: true };
    assert_eq!(session.next(&large, 1), Some(taken));
    assert_eq!(session.next(&large, 2), Some(Op::Trim { offset: 0, len: 1 << 31, durable: true }));
    let has = |export: &Export| {
        [export_flag::SEND_TRIM, export_flag::SEND_WRITE_ZEROES].map(|flag| export.flags() & flag != 0)
    };
    assert_eq!(has(&export()), [true, true]);
    assert_eq!(has(&Export { trim: false, ..export() }), [false, true]);
    let read_only = Export { read_only: true, ..export() };
    assert_eq!(has(&read_only), [false, false]);
    for (export, kind, error) in [
        (Export { trim: false, ..export() }, command::TRIM, errno::ENOTSUP),
        (read_only.clone(), command::TRIM, errno::EPERM),
        (read_only, command::WRITE_ZEROES, errno::EPERM),
    ] {
        let mut session = negotiated();
        session.receive(&request(kind, 0, 1, 0, 512, &[]));
        assert_eq!(session.next(&export, 1), None);
        assert_eq!(output(&mut session)[4..8], error.to_be_bytes());
    }
}

#[test]
fn disconnect_oversized_write_and_malformed_input_end_the_session() {
    let ending_requests = [
        request(command::DISC, 0, 1, 0, 0, &[]),
        request(command::WRITE, 0, 1, 0, MAX_PAYLOAD + 1, &[]),
        vec![0; REQUEST_LEN],
    ];
    for bytes in ending_requests {
        let mut session = negotiated();
        session.receive(&bytes);
        assert_eq!(session.next(&export(), 1), None);
        assert!(session.is_finished() && !session.wants_input());
    }
    let malformed_handshakes = [
        0xffff_u32.to_be_bytes().to_vec(),
        [&[0, 0, 0, 3][..], &[0; 16]].concat(),
        [&[0, 0, 0, 3][..], &IHAVEOPT.to_be_bytes(), &[0, 0, 0, 7, 0xff, 0xff, 0xff, 0xff]].concat(),
        [&[0, 0, 0, 3][..], &option_bytes(option::EXPORT_NAME, b"other")].concat(),
    ];
    for bytes in malformed_handshakes {
        let mut session = Session::new();
        session.receive(&bytes);
        session.next(&export(), 1);
        assert!(session.ended, "{bytes:?}");
    }
}

#[test]
fn client_that_reads_no_replies_is_not_read_from_beyond_the_bound() {
    let mut session = negotiated();
    let read = request(command::READ, 0, 1, 0, 1 << 20, &[]);
    let mut submitted = 0;
    for _ in 0..10_000 {
        if !session.wants_input() {
            break;
        }
        session.receive(&read);
        while session.next(&export(), submitted + 1).is_some() {
            submitted += 1;
        }
    }
    assert_eq!(submitted, MAX_BYTES as u64 >> 20);
    for id in 1..=submitted {
        session.complete(id, Ok(vec![0; 1 << 20]));
    }
    assert!(!session.wants_input(), "unsent output counts too");
}

#[test]
fn client_that_always_has_unsent_replies_does_not_make_the_session_grow() {
    let mut session = negotiated();
    let mut id = 0;
    for _ in 0..10_000 {
        id += 1;
        session.receive(&request(command::READ, 0, id, 0, 4096, &[]));
        assert!(session.next(&export(), id).is_some());
        session.complete(id, Ok(vec![0; 4096]));
        // One reply less than were made: the output never is empty.
        if id > 1 {
            let len = session.unsent().len().min(4096 + 16);
            session.sent(len);
        }
    }
    assert!(session.output.allocated() < 1 << 20, "{} bytes", session.output.allocated());
}

proptest! {
    #[test]
    fn input_split_anywhere_parses_to_the_same_requests(cuts in prop::collection::vec(1usize..700, 0..40)) {
        let mut bytes = 3u32.to_be_bytes().to_vec();
        bytes.extend(option_bytes(option::LIST, &[]));
        bytes.extend(go(""));
        bytes.extend(request(command::WRITE, 0, 1, 512, 1024, &[3; 1024]));
        bytes.extend(request(command::TRIM, 0, 2, 0, 512, &[]));
        bytes.extend(request(command::DISC, 0, 3, 0, 0, &[]));
        let mut session = Session::new();
        let mut rest = &bytes[..];
        let mut ops = Vec::new();
        for cut in cuts.into_iter().chain([usize::MAX]) {
            let (piece, after) = rest.split_at(cut.min(rest.len()));
            session.receive(piece);
            while let Some(op) = session.next(&export(), ops.len() as u64) {
                ops.push(op);
            }
            rest = after;
        }
        let write = Op::Write { offset: 512, data: vec![3; 1024], durable: false };
        prop_assert_eq!(ops, [write, Op::Trim { offset: 0, len: 512, durable: false }]);
        prop_assert!(session.ended);
    }

    #[test]
    fn arbitrary_input_never_panics_or_gives_requests_beyond_the_end(
        start in any::<bool>(),
        messages in prop::collection::vec(
            prop_oneof![
                (0u16..8, 0u16..3, 0u64..3 << 20, 0u32..9000).prop_map(|(k, f, o, l)| request(k, f, 1, o, l, &[])),
                (0u32..12, prop::collection::vec(any::<u8>(), 0..40)).prop_map(|(k, d)| option_bytes(k, &d)),
                prop::collection::vec(any::<u8>(), 0..60),
            ],
            0..20,
        ),
    ) {
        let mut session = if start { negotiated() } else { Session::new() };
        for (id, bytes) in messages.iter().enumerate() {
            session.receive(bytes);
            while let Some(op) = session.next(&export(), id as u64) {
                let end = match op {
                    Op::Read { offset, len }
                    | Op::Trim { offset, len, .. }
                    | Op::WriteZeroes { offset, len, .. } => offset + u64::from(len),
                    Op::Write { offset, data, .. } => offset + data.len() as u64,
                    Op::Flush => 0,
                };
                prop_assert!(end <= export().size);
            }
        }
    }
}
