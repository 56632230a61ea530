//! The harness of the property tests and of the fuzz target: a frontend that writes arbitrary bytes into the ring.

use std::collections::BTreeSet;

use ring_abi::blkif::{Request, Response, Status, X86_32, X86_64};
use ring_abi::ring::Protocol;
use ring_abi::shm::Memory;
use ring_abi::testing::Pages;

use crate::check::Limits;
use crate::queue::Queue;
use crate::request::{Operation, PendingRequest, Tag};

/// Runs a script of bytes against both layouts; panics if the queue returns an invalid request.
pub fn hostile(script: &[u8]) {
    run::<X86_64>(script);
    run::<X86_32>(script);
}

fn limits(byte: u8) -> Limits {
    let sectors = [0, 8, 1 << 20, u64::MAX][usize::from(byte & 3)];
    let sector_size = 512 << (byte >> 2 & 3);
    Limits {
        sectors,
        sector_size,
        read_only: byte & 16 != 0,
        flush: byte & 32 == 0,
        discard: byte & 48 == 0,
        indirect_segments: u16::from(byte >> 5) * 80,
    }
}

fn run<P: Protocol<Request = Request, Response = Response>>(script: &[u8]) {
    let Some((&first, script)) = script.split_first() else { return };
    let memory = Pages::new(1 << (first >> 6 & 1));
    let limits = limits(first);
    let Ok(mut queue) = Queue::<P, Pages>::attach(memory.clone(), limits) else { return };
    let mut open: Vec<Tag> = Vec::new();
    for step in script.chunks_exact(8) {
        let value = u32::from_le_bytes([step[4], step[5], step[6], step[7]]);
        let words = memory.words();
        match step[0] % 8 {
            0 | 1 => {
                let at = usize::from(u16::from_le_bytes([step[2], step[3]])) % memory.len();
                words.store32(at & !3, value);
            }
            // A request that is valid or nearly valid, and the producer index advanced.
            2 | 3 => {
                let at = 64 + (step[1] as usize % 32) * P::SLOT;
                words.store32(at, u32::from(step[2] % 8) | u32::from(step[3] % 13) << 8);
                words.store32(at + P::SLOT - 92, value % 64);
                words.store32(0, words.load32(0).wrapping_add(1));
            }
            4 => words.store32(0, value),
            5 if !open.is_empty() => {
                let tag = open.swap_remove(usize::from(step[1]) % open.len());
                queue.complete(tag, if step[2] & 1 == 0 { Status::OKAY } else { Status::ERROR });
            }
            6 => {
                let _ = queue.commit();
                if queue.arm().is_err() {
                    return;
                }
            }
            _ => match queue.poll() {
                Err(_) => return,
                Ok(polled) => {
                    let first = open.len();
                    open.extend(polled);
                    // Segments are bytes of the script, too.
                    fetch(&mut queue, &script[..script.len().min(32 * usize::from(step[1]))], &mut open);
                    open[first..].iter().for_each(|tag| check_request(&queue.requests()[*tag], &limits));
                }
            },
        }
        let tags: BTreeSet<_> = open.iter().collect();
        assert_eq!(tags.len(), open.len(), "a tag is in use twice");
        assert!(queue.in_flight() <= queue.size() && open.len() <= queue.in_flight());
    }
}

/// Gives all requests that are to be fetched the same segments, and appends those that may be carried out to `open`.
fn fetch<P: Protocol<Request = Request, Response = Response>>(
    queue: &mut Queue<P, Pages>,
    bytes: &[u8],
    open: &mut Vec<Tag>,
) {
    let mut unfetched = Vec::new();
    queue.take_unfetched(&mut unfetched);
    open.extend(unfetched.into_iter().filter(|tag| queue.fetched(*tag, bytes)));
}

/// Asserts what engines rely on.
fn check_request(request: &PendingRequest, limits: &Limits) {
    let mut sectors = 0;
    for segment in request.segments() {
        assert!(segment.first_sect <= segment.last_sect && segment.last_sect < 8);
        sectors += u64::from(segment.last_sect - segment.first_sect) + 1;
    }
    if let Request::Discard(discard) = request.request() {
        assert!(limits.discard && request.operation() == Operation::Discard && request.segments().is_empty());
        sectors = discard.nr_sectors;
    }
    let unit = u64::from(limits.sector_size) / 512;
    assert!(request.sector().is_multiple_of(unit) && sectors.is_multiple_of(unit));
    assert!(request.sector().checked_add(sectors).is_some_and(|end| end <= limits.sectors));
    assert_eq!(request.bytes() as u64, sectors.saturating_mul(512));
    assert_eq!(request.operation() == Operation::Flush, sectors == 0);
    assert!(matches!(request.operation(), Operation::Read | Operation::Flush) || !limits.read_only);
}
