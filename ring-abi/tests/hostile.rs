//! A peer that writes anything at any time: see [`common::hostile`].
#![cfg(not(loom))]

mod common;

use common::hostile;
use rand::rngs::SmallRng;
use rand::{Rng, RngExt, SeedableRng};
use ring_abi::blkif::{Request, Response, Status, X86_64};
use ring_abi::console;
use ring_abi::ring::{Back, Fault, Front, Protocol};
use ring_abi::stream::{self, Stream};
use ring_abi::testing::Pages;

/// Random scripts with a fixed seed: few of them under Miri, which is slow.
#[test]
fn random_peer_writes_cause_no_panic() {
    let mut numbers = SmallRng::seed_from_u64(1);
    let runs = if cfg!(miri) { 26 } else { 4_000 };
    let steps = if cfg!(miri) { 60 } else { 600 };
    for run in 0..runs {
        let mut bytes = vec![run as u8];
        bytes.extend((0..numbers.random_range(0..steps)).map(|_| numbers.next_u64() as u8));
        hostile::run(&bytes);
    }
}

#[cfg(not(miri))]
mod arbitrary {
    use super::hostile;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn arbitrary_peer_writes_cause_no_panic(bytes in proptest::collection::vec(any::<u8>(), 0..2048)) {
            hostile::run(&bytes);
        }
    }
}

#[test]
fn producer_index_too_high_or_decreased_is_a_fault() {
    let pages = Pages::new(1);
    let mut back = Back::<X86_64, _>::attach(pages.clone()).unwrap();
    pages.words().store32(0, 33);
    let ahead = Fault::Overflow { ring: X86_64::NAME, found: 33, consumed: 0, limit: 32 };
    assert_eq!(back.pop(), Err(ahead));
    pages.words().store32(0, 1);
    assert!(matches!(back.pop(), Ok(Some(Request::Io(_)))));
    pages.words().store32(0, 0);
    assert!(matches!(back.pop(), Err(Fault::Overflow { found: 0, consumed: 1, .. })));
}

#[test]
fn response_to_an_unpublished_request_is_a_fault() {
    let pages = Pages::new(1);
    let mut front = Front::<X86_64, _>::init(pages.clone()).unwrap();
    assert!(front.push(&Request::default()));
    pages.words().store32(8, 1);
    assert!(front.pop().is_err(), "the request is pushed but not published");
    let _ = front.commit();
    assert!(front.pop().is_ok());
    assert_eq!(front.free(), front.size());
}

#[test]
fn indexes_that_wrap_are_valid() {
    let pages = Pages::new(1);
    pages.words().store32(0, u32::MAX - 2);
    pages.words().store32(8, u32::MAX - 2);
    let mut back = Back::<X86_64, _>::attach(pages.clone()).unwrap();
    pages.words().store32(0, 5);
    let mut request = Request::default();
    for _ in 0..8 {
        assert_eq!(back.pop_into(&mut request), Ok(true));
        back.push(&Response { id: 0, operation: 0, status: Status::OKAY });
    }
    assert_eq!(back.pop_into(&mut request), Ok(false));
    let _ = back.commit();
    assert_eq!(pages.words().load32(8), 5);
}

#[test]
fn stream_transfers_all_bytes_in_order() {
    let pages = Pages::new(1);
    let mut front = Stream::front(pages.clone(), &console::INTERFACE).unwrap();
    let mut back = Stream::back(pages, &console::INTERFACE).unwrap();
    let mut numbers = SmallRng::seed_from_u64(7);
    let mut sent = 0u64;
    let mut received = 0u64;
    let total = if cfg!(miri) { 3_000 } else { 300_000 };
    while received < total {
        let bytes: Vec<u8> = (0..numbers.random_range(0..700)).map(|i| (sent + i) as u8).collect();
        sent += front.write(&bytes).unwrap() as u64;
        let mut into = vec![0; numbers.random_range(0..700) as usize];
        let count = back.read(&mut into).unwrap();
        assert!(into[..count].iter().enumerate().all(|(i, byte)| *byte == (received + i as u64) as u8));
        received += count as u64;
    }
    assert!(received <= sent && sent <= received + 2048);
}

#[test]
fn stream_with_an_index_out_of_range_is_a_fault() {
    let pages = Pages::new(1);
    let mut back = Stream::back(pages.clone(), &console::INTERFACE).unwrap();
    pages.words().store32(console::OUT.prod, 2049);
    let fault = stream::Fault::Index { stream: "console", prod: 2049, cons: 0, size: 2048 };
    assert_eq!(back.read(&mut [0; 8]), Err(fault));
    pages.words().store32(console::IN.cons, 1);
    assert!(back.write(b"x").is_err());
}

/// The peer overwrites requests while they are read: the checked values are the ones used, as each is read once. (Not
/// under Miri, which reports 4- and 8-byte accesses of one word as a data race.)
#[cfg(not(miri))]
#[test]
fn request_overwritten_while_read_is_consistent() {
    use ring_abi::shm::Memory;
    use std::sync::atomic::{AtomicBool, Ordering};
    let pages = Pages::new(1);
    let stop = AtomicBool::new(false);
    let mut back = Back::<X86_64, _>::attach(pages.clone()).unwrap();
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let mut numbers = SmallRng::seed_from_u64(3);
            while !stop.load(Ordering::Relaxed) {
                let offset = 64 + numbers.random_range(0..pages.len() as u64 / 4 - 16) as usize * 4;
                pages.words().store32(offset, numbers.next_u64() as u32);
            }
        });
        for produced in 1..20_000u32 {
            pages.words().store32(0, produced);
            let request = back.pop().unwrap().expect("published");
            if let Request::Io(io) = &request {
                assert_eq!(io.segments.len(), usize::from(io.nr_segments).min(11));
            }
            back.push(&Response { id: request.id(), operation: request.operation(), status: Status::OKAY });
            let _ = back.commit();
        }
        stop.store(true, Ordering::Relaxed);
    });
}
