//! The balloon queue: frames that an arena's owner gave up, for the peer to take over.
//!
//! It has one producer (the owner) and one consumer (the peer). Each keeps its own index in private memory and reads
//! the other's only to learn how far it got. The frames read are not trusted: the consumer checks them against its
//! own list.

use super::arena::{self, Arena};
use super::atomic::Ordering;
use super::layout::Layout;
use crate::Result;
use nix::unistd::{Whence, lseek};
use std::os::fd::OwnedFd;

/// Bytes of the queue's header; the slots follow.
const HEADER: usize = ring_abi::PAGE_SIZE;
/// Offset of the owner's index in the header.
const PRODUCED: usize = 0;
/// Offset of the peer's index in the header, in another cache line.
const CONSUMED: usize = 64;
/// Offset of the number of processes of the peer that have exited, which the broker counts.
const EXITS: usize = 128;
/// Offset of the peer's index when the last of them exited.
const CONSUMED_AT_EXIT: usize = 132;

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

/// How far the peer's processes that have exited took frames.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(super) struct Exits {
    /// How many there were, modulo 2^32.
    pub(super) count: u32,
    /// The index behind the last frame that any of them took.
    consumed: u32,
}

impl Exits {
    /// Whether a frame that is at this index of the queue was taken by a process that has exited.
    pub(super) fn took(self, index: u32) -> bool {
        self.count != 0 && (self.consumed.wrapping_sub(index) as i32) > 0
    }
}

/// Owner: which processes of the peer have exited.
pub(super) fn exits(arena: &Arena) -> Exits {
    let header = arena.layout().balloon();
    let count = arena.word(header + EXITS).load(Ordering::Acquire);
    Exits { count, consumed: arena.word(header + CONSUMED_AT_EXIT).load(Ordering::Relaxed) }
}

/// Broker: records that the peer's process has exited, with the frames that it took. An arena whose queue was never used
/// does not grow.
///
/// # Errors
/// As [`Arena::open`].
pub(super) fn record_exit(fd: &OwnedFd, layout: Layout) -> Result<()> {
    let arena = arena::map_temporarily(fd, layout)?;
    let header = layout.balloon();
    if lseek(arena.fd(), header as i64, Whence::SeekData) != Ok(header as i64) {
        return Ok(());
    }
    let consumed = arena.word(header + CONSUMED).load(Ordering::Relaxed);
    arena.word(header + CONSUMED_AT_EXIT).store(consumed, Ordering::Relaxed);
    arena.word(header + EXITS).fetch_add(1, Ordering::Release);
    Ok(())
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
