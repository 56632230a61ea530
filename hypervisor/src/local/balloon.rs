//! The balloon queue: frames that an arena's owner gave up, for the peer to take over.
//!
//! It has one producer (the owner) and one consumer (the peer). Each keeps its own index in private memory and reads
//! the other's only to learn how far it got. The frames read are not trusted: the consumer checks them against its
//! own list.

use super::arena::Arena;
use std::sync::atomic::Ordering;

/// Bytes of the queue's header; the slots follow.
const HEADER: usize = ring_abi::PAGE_SIZE;
/// Offset of the owner's index in the header.
const PRODUCED: usize = 0;
/// Offset of the peer's index in the header, in another cache line.
const CONSUMED: usize = 64;

fn slot(arena: &Arena, index: u32) -> usize {
    let at = index & (arena.layout().balloon_slots() - 1);
    arena.layout().balloon() + HEADER + at as usize * size_of::<u32>()
}

/// Owner: appends as many of `frames` as there is space for, and returns how many. `produced` is its private index.
pub(super) fn push(arena: &Arena, produced: &mut u32, frames: &[u32]) -> usize {
    let header = arena.layout().balloon();
    let consumed = arena.word(header + CONSUMED).load(Ordering::Acquire);
    // The peer's index is not trusted: a wrong one can only make the peer miss frames.
    let used = produced.wrapping_sub(consumed).min(arena.layout().balloon_slots());
    let space = (arena.layout().balloon_slots() - used) as usize;
    let count = frames.len().min(space);
    for frame in &frames[..count] {
        arena.word(slot(arena, *produced)).store(*frame, Ordering::Relaxed);
        *produced = produced.wrapping_add(1);
    }
    arena.word(header + PRODUCED).store(*produced, Ordering::Release);
    count
}

/// Owner: empties the queue, for when it takes all frames back.
pub(super) fn reset(arena: &Arena, produced: &mut u32) {
    let header = arena.layout().balloon();
    *produced = arena.word(header + CONSUMED).load(Ordering::Acquire);
    arena.word(header + PRODUCED).store(*produced, Ordering::Release);
}

/// Peer: removes at most `count` frames and passes each, unchecked, to `each`.
pub(super) fn pop(arena: &Arena, count: usize, mut each: impl FnMut(u32)) {
    let header = arena.layout().balloon();
    let mut consumed = arena.word(header + CONSUMED).load(Ordering::Relaxed);
    let produced = arena.word(header + PRODUCED).load(Ordering::Acquire);
    let queued = produced.wrapping_sub(consumed).min(arena.layout().balloon_slots()) as usize;
    for _ in 0..queued.min(count) {
        each(arena.word(slot(arena, consumed)).load(Ordering::Relaxed));
        consumed = consumed.wrapping_add(1);
    }
    arena.word(header + CONSUMED).store(consumed, Ordering::Release);
}
