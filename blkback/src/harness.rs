//! One harness for property tests and the fuzz target: a frontend that writes whatever it likes into the ring.

use std::collections::BTreeSet;

use ring_abi::blkif::{Request, Response, Status, X86_32, X86_64};
use ring_abi::ring::Protocol;
use ring_abi::shm::Memory;
use ring_abi::testing::Pages;

use crate::check::Limits;
use crate::queue::{Op, Queue, Task};

/// Plays a script of bytes against both layouts: no panic, no impossible task, whatever it is.
pub fn hostile(script: &[u8]) {
    play::<X86_64>(script);
    play::<X86_32>(script);
}

fn limits(byte: u8) -> Limits {
    let sectors = [0, 8, 1 << 20, u64::MAX][usize::from(byte & 3)];
    let sector_size = 512 << (byte >> 2 & 3);
    Limits { sectors, sector_size, read_only: byte & 16 != 0, flush: byte & 32 == 0 }
}

fn play<P: Protocol<Request = Request, Response = Response>>(script: &[u8]) {
    let Some((&first, script)) = script.split_first() else { return };
    let (memory, limits) = (Pages::new(1 << (first >> 6 & 1)), limits(first));
    let Ok(mut queue) = Queue::<P, Pages>::attach(memory.clone(), limits) else { return };
    let mut open: Vec<Task> = Vec::new();
    for step in script.chunks_exact(8) {
        let value = u32::from_le_bytes([step[4], step[5], step[6], step[7]]);
        let words = memory.words();
        match step[0] % 8 {
            0 | 1 => {
                let at = usize::from(u16::from_le_bytes([step[2], step[3]])) % memory.len();
                words.store32(at & !3, value);
            }
            // A request as it should be, or nearly, and the index moved.
            2 | 3 => {
                let at = 64 + (step[1] as usize % 32) * P::SLOT;
                words.store32(at, u32::from(step[2] % 8) | u32::from(step[3] % 13) << 8);
                words.store32(at + P::SLOT - 92, value % 64);
                words.store32(0, words.load32(0).wrapping_add(1));
            }
            4 => words.store32(0, value),
            5 if !open.is_empty() => {
                let task = open.swap_remove(usize::from(step[1]) % open.len());
                queue.complete(task.job, if step[2] & 1 == 0 { Status::OKAY } else { Status::ERROR });
            }
            6 => {
                let _ = queue.commit();
                if queue.arm().is_err() {
                    return;
                }
            }
            _ => match queue.poll() {
                Err(_) => return,
                Ok(None) => {}
                Ok(Some(task)) => {
                    possible(&task, &limits);
                    open.push(task);
                }
            },
        }
        let jobs: BTreeSet<_> = open.iter().map(|t| t.job).collect();
        assert_eq!(jobs.len(), open.len(), "a job given out twice");
        assert!(queue.in_flight() <= queue.size() && open.len() <= queue.in_flight());
    }
}

/// What every task promises to the engine.
fn possible(task: &Task, limits: &Limits) {
    let mut sectors = 0;
    for segment in &task.segments {
        assert!(segment.first_sect <= segment.last_sect && segment.last_sect < 8);
        sectors += u64::from(segment.last_sect - segment.first_sect) + 1;
    }
    let unit = u64::from(limits.sector_size) / 512;
    assert!(task.sector.is_multiple_of(unit) && sectors.is_multiple_of(unit));
    assert!(task.sector.checked_add(sectors).is_some_and(|end| end <= limits.sectors));
    assert_eq!(task.op == Op::Flush, sectors == 0);
    assert!(task.op != Op::Write || !limits.read_only);
}
