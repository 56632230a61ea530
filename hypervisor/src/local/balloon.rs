//! The balloon's queue: frames that an arena's owner gave up, on their way to the peer that flips pages with them.
//!
//! One writer (the owner), one reader (the peer). Each keeps its own index in private memory and looks at the
//! other's only to see how far it got; what is read is a claim, to be checked against the reader's own list.

use super::arena::Arena;
use std::sync::atomic::Ordering;

/// Bytes of the queue's header page, then its slots.
const HEADER: usize = ring_abi::PAGE_SIZE;
/// Where the owner's index is in the header, and the peer's, on lines of their own.
const PRODUCED: usize = 0;
const CONSUMED: usize = 64;

fn slot(arena: &Arena, index: u32) -> usize {
    let at = index & (arena.layout().balloon_slots() - 1);
    arena.layout().balloon() + HEADER + at as usize * size_of::<u32>()
}

/// The owner's end; its private index is `produced`.
pub(super) fn push(arena: &Arena, produced: &mut u32, frames: &[u32]) -> usize {
    let header = arena.layout().balloon();
    let consumed = arena.word(header + CONSUMED).load(Ordering::Acquire);
    // The peer's index is its word only: a wrong one costs at most these frames' being seen.
    let used = produced.wrapping_sub(consumed).min(arena.layout().balloon_slots());
    let room = (arena.layout().balloon_slots() - used) as usize;
    let count = frames.len().min(room);
    for frame in &frames[..count] {
        arena.word(slot(arena, *produced)).store(*frame, Ordering::Relaxed);
        *produced = produced.wrapping_add(1);
    }
    arena.word(header + PRODUCED).store(*produced, Ordering::Release);
    count
}

/// The owner's end after it took everything back: nothing is queued any more.
pub(super) fn reset(arena: &Arena, produced: &mut u32) {
    let header = arena.layout().balloon();
    *produced = arena.word(header + CONSUMED).load(Ordering::Acquire);
    arena.word(header + PRODUCED).store(*produced, Ordering::Release);
}

/// The peer's end: at most `count` frames, as the owner claims them, one by one to `each`.
pub(super) fn pop(arena: &Arena, count: usize, mut each: impl FnMut(u32)) {
    let header = arena.layout().balloon();
    let mut consumed = arena.word(header + CONSUMED).load(Ordering::Relaxed);
    let produced = arena.word(header + PRODUCED).load(Ordering::Acquire);
    let there = produced.wrapping_sub(consumed).min(arena.layout().balloon_slots()) as usize;
    for _ in 0..there.min(count) {
        each(arena.word(slot(arena, consumed)).load(Ordering::Relaxed));
        consumed = consumed.wrapping_add(1);
    }
    arena.word(header + CONSUMED).store(consumed, Ordering::Release);
}
