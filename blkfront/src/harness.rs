//! The harness of the property tests and of the fuzz target: a backend that writes arbitrary bytes into the ring.

use alloc::collections::BTreeSet;

use ring_abi::GrantRef;
use ring_abi::blkif::X86_64;
use ring_abi::shm::Memory;
use ring_abi::testing::Pages;

use crate::queue::{Operation, Queue, Segments};

/// A segment of one page.
pub fn segments() -> Segments {
    let segment = ring_abi::blkif::Segment { gref: GrantRef(8), first_sect: 0, last_sect: 7 };
    core::iter::once(segment).collect()
}

/// Runs a script of bytes; panics if the queue returns an item twice or loses one.
pub fn hostile(script: &[u8]) {
    let mut memory = Pages::new(1);
    let mut queue: Queue<X86_64, Pages, u64> = Queue::new(0);
    let mut open = BTreeSet::new();
    let mut next = 0;
    for step in script.chunks_exact(8) {
        let value = u32::from_le_bytes([step[4], step[5], step[6], step[7]]);
        let words = memory.words();
        match step[0] % 8 {
            0 => {
                let at = usize::from(u16::from_le_bytes([step[2], step[3]])) % memory.len();
                words.store32(at & !3, value);
            }
            // A response that is valid or nearly valid, and the producer index advanced.
            1 | 2 => {
                let at = 64 + (step[1] as usize % 32) * 112;
                // An id: the slot's index, and the number of earlier requests.
                words.store32(at, u32::from(step[2] % 32) | u32::from(step[3]) << 16);
                words.store32(at + 4, 0);
                words.store32(at + 8, value & 0x1_0003);
                words.store32(8, words.load32(8).wrapping_add(1));
            }
            3 => words.store32(8, words.load32(0).wrapping_sub(value % 4)),
            4 | 5 => {
                let operation = [Operation::Read, Operation::Write, Operation::Barrier, Operation::Flush]
                    [usize::from(step[1] & 3)];
                let before = queue.in_flight();
                let sector = u64::from(value);
                let submitted = match step[1] & 4 {
                    0 => queue.submit(operation, sector, &segments(), next),
                    _ => queue.submit_discard(sector, 8, next),
                };
                if submitted.is_ok() {
                    open.insert(next);
                    assert_eq!(queue.in_flight(), before + 1);
                }
                next += 1;
                let _ = queue.commit();
            }
            6 if step[1] % 8 == 0 => {
                memory = Pages::new(1);
                assert!(queue.connect(memory.clone()).is_ok());
            }
            _ => {
                if queue.poll(|item, _| assert!(open.remove(&item), "returned twice")).is_err() {
                    // A fault ends the connection; a later backend gets the same requests over a new ring.
                    drop(queue.disconnect());
                }
            }
        }
        assert_eq!(queue.in_flight(), open.len());
    }
    let rest: BTreeSet<_> = queue.abandon().into_iter().collect();
    assert_eq!(rest, open, "lost");
}
