//! Slots of blkif as they are copied on x86-64, by 16-byte loads and by stores in assembly. Miri and loom check other code,
//! which copies word by word. A pair of segments may be torn, but never an 8-byte word, and nothing that the ring's
//! indexes cover.
#![cfg(not(any(loom, miri)))]

use ring_abi::GrantRef;
use ring_abi::blkif::{Io, MAX_SEGMENTS, OP_WRITE, Request, Response, Segment, Status, X86_64};
use ring_abi::ring::{Back, Front, Protocol};
use ring_abi::shm::{HEADER_LEN, Memory, Slot};
use ring_abi::testing::{Pages, StopOnDrop};
use std::sync::atomic::{AtomicBool, Ordering};

/// Bytes before a request's segments.
const HEAD: usize = 24;
/// Requests through the ring, and reads of a slot that is being written.
const REQUESTS: u32 = 100_000;
const READS: usize = 1_000_000;

/// Makes a request all of whose words depend on `seed`.
fn request(seed: u32, segments: usize) -> Request {
    let segment = |i: u32| Segment {
        gref: GrantRef(seed.wrapping_mul(31).wrapping_add(i)),
        first_sect: (seed % 8) as u8,
        last_sect: ((seed + i) % 8) as u8,
    };
    Request::Io(Io {
        id: u64::from(seed) << 32 | u64::from(!seed),
        sector_number: u64::from(seed) * 8,
        operation: OP_WRITE,
        nr_segments: segments as u8,
        handle: seed as u16,
        segments: (0..segments as u32).map(segment).collect(),
    })
}

fn io(request: &Request) -> &Io {
    match request {
        Request::Io(io) => io,
        other => panic!("{other:?}"),
    }
}

/// The first slot of a ring in `pages`.
fn slot(pages: &Pages) -> Slot<'_> {
    // SAFETY: a page is longer, its first slot is 16-aligned, and `pages` outlives the slot.
    #[allow(unsafe_code)]
    unsafe {
        Slot::new(pages.base().add(HEADER_LEN), X86_64::SLOT)
    }
}

/// A segment's 8-byte word as blkif.h lays it out: reference, first and last sector, two bytes of padding.
fn word(segment: &Segment) -> u64 {
    u64::from(segment.gref.0) | u64::from(segment.first_sect) << 32 | u64::from(segment.last_sect) << 40
}

#[test]
fn segments_of_every_count_are_written_and_read_exactly() {
    for count in 0..=MAX_SEGMENTS {
        let pages = Pages::new(1);
        let stale = [0xff; X86_64::SLOT];
        slot(&pages).store_bytes(0, &stale);
        let sent = request(12345, count);
        X86_64::write_request(slot(&pages), &sent);
        for (i, segment) in io(&sent).segments.iter().enumerate() {
            assert_eq!(
                slot(&pages).load64(HEAD + 8 * i),
                word(segment),
                "segment {i} of {count}: padding is 0"
            );
        }
        for i in count..MAX_SEGMENTS {
            assert_eq!(
                slot(&pages).load64(HEAD + 8 * i),
                u64::MAX,
                "beyond the {count} segments nothing is written"
            );
        }
        assert_eq!(X86_64::read_request(slot(&pages)), sent, "{count} segments");
    }
}

/// Runs `check` while another thread writes both requests alternately into the slot.
fn with_racing_writer(pages: &Pages, sent: &[Request; 2], check: impl FnOnce()) {
    let stop = AtomicBool::new(false);
    X86_64::write_request(slot(pages), &sent[0]);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !stop.load(Ordering::Relaxed) {
                sent.iter().for_each(|request| X86_64::write_request(slot(pages), request));
            }
        });
        let _stop = StopOnDrop(&stop);
        check();
    });
}

/// The peer rewrites the slot: a request read meanwhile may mix both requests, but each segment is one of theirs.
#[test]
fn read_while_the_peer_writes_tears_no_segment() {
    let pages = Pages::new(1);
    let sent = [request(1, MAX_SEGMENTS), request(0xdead_beef, MAX_SEGMENTS)];
    with_racing_writer(&pages, &sent, || {
        for _ in 0..READS {
            let found = X86_64::read_request(slot(&pages));
            for (i, segment) in io(&found).segments.iter().enumerate() {
                assert!(sent.iter().any(|request| io(request).segments[i] == *segment), "{segment:?}");
            }
        }
    });
}

/// A peer's 8-byte loads see whole segments of the assembly's stores.
#[test]
fn write_while_the_peer_reads_tears_no_segment() {
    let pages = Pages::new(1);
    let sent = [request(7, MAX_SEGMENTS), request(0x8765_4321, MAX_SEGMENTS)];
    with_racing_writer(&pages, &sent, || {
        for round in 0..READS {
            let i = round % MAX_SEGMENTS;
            let found = slot(&pages).load64(HEAD + 8 * i);
            assert!(sent.iter().any(|request| word(&io(request).segments[i]) == found), "{found:#x}");
        }
    });
}

/// Two threads with one ring: requests below the producer index are whole, and no pair is torn.
#[test]
fn requests_through_the_ring_are_not_torn() {
    let pages = Pages::new(1);
    let stop = AtomicBool::new(false);
    let mut front = Front::<X86_64, _>::init(pages.clone()).unwrap();
    let mut back = Back::<X86_64, _>::attach(pages).unwrap();
    let count = |seed: u32| 1 + seed as usize % MAX_SEGMENTS;
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let mut next = 0;
            while next < REQUESTS && !stop.load(Ordering::Relaxed) {
                while front.pop().unwrap().is_some() {}
                while next < REQUESTS && front.push(&request(next, count(next))) {
                    next += 1;
                }
                let _ = front.commit();
                std::thread::yield_now();
            }
        });
        let _stop = StopOnDrop(&stop);
        for seed in 0..REQUESTS {
            let found = loop {
                match back.pop().unwrap() {
                    Some(found) => break found,
                    None => std::thread::yield_now(),
                }
            };
            assert_eq!(found, request(seed, count(seed)));
            back.push(&Response { id: found.id(), operation: OP_WRITE, status: Status::OKAY });
            let _ = back.commit();
        }
    });
}
