//! What of a peer's arena this domain has mapped: private counts, so that two mappings of one page are released
//! correctly whatever the owner writes into its table.

use super::arena::Arena;
use super::entry::{BAD_PAGE, BAD_REF, Entry, GENERAL_ERROR};
use crate::{Error, Result};
use memmap2::MmapMut;
use ring_abi::{DomId, GrantRef};
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU32, Ordering};

/// Held while the count and the shared entry change together.
const LOCKED: u32 = 1 << 31;
const READER: u32 = 1;
const WRITER: u32 = 1 << 15;
const READERS: u32 = WRITER - 1;
const WRITERS: u32 = READERS << 15;

/// Counts of readers and writers for each entry of one arena.
#[derive(Debug)]
pub(super) struct Pins {
    counts: MmapMut,
    entries: u32,
}

impl Pins {
    /// None yet; memory is spent on those entries that are used.
    pub(super) fn new(entries: u32) -> Result<Self> {
        let counts = MmapMut::map_anon(entries as usize * size_of::<u32>())
            .map_err(|e| Error::io("map the pin counts", e))?;
        Ok(Self { counts, entries })
    }

    #[allow(unsafe_code, clippy::cast_ptr_alignment)] // The counts lie in a page-aligned mapping of our own.
    #[inline]
    fn count(&self, gref: GrantRef) -> Option<&AtomicU32> {
        // SAFETY: inside the mapping by the check, aligned, zeroed at first, and only ever used as an atomic.
        (gref.0 < self.entries)
            .then(|| unsafe { &*self.counts.as_ptr().cast::<AtomicU32>().add(gref.0 as usize) })
    }

    /// Takes the lock of one count and gives the count. Its holder does a few instructions only.
    #[inline]
    fn lock(count: &AtomicU32) -> u32 {
        let mut spins = 0u32;
        let mut now = 0;
        loop {
            match count.compare_exchange_weak(now, now | LOCKED, Ordering::Acquire, Ordering::Relaxed) {
                Ok(_) => return now,
                Err(other) => now = other & !LOCKED,
            }
            spins += 1;
            if spins.is_multiple_of(128) {
                std::thread::yield_now();
            }
        }
    }

    /// Pins the page that `me` was granted by `gref`, and says where it is.
    ///
    /// # Errors
    /// `GNTST_*`.
    #[inline]
    pub(super) fn pin(
        &self,
        arena: &Arena,
        me: DomId,
        gref: GrantRef,
        write: bool,
    ) -> std::result::Result<NonNull<u8>, i16> {
        let (Some(entry), Some(count)) = (arena.entry(gref), self.count(gref)) else {
            return Err(BAD_REF);
        };
        let now = Self::lock(count);
        match take(entry, me, now, write) {
            Ok((next, frame)) => {
                count.store(next, Ordering::Release);
                arena.page(frame).ok_or_else(|| {
                    self.unpin(arena, gref, write);
                    BAD_PAGE
                })
            }
            Err(status) => {
                count.store(now, Ordering::Release);
                Err(status)
            }
        }
    }

    /// Undoes one [`Pins::pin`].
    #[inline]
    pub(super) fn unpin(&self, arena: &Arena, gref: GrantRef, write: bool) {
        let (Some(entry), Some(count)) = (arena.entry(gref), self.count(gref)) else { return };
        let now = Self::lock(count);
        let next = now.saturating_sub(if write { WRITER } else { READER });
        if next == 0 {
            entry.unpin(true);
        } else if write && next & WRITERS == 0 {
            entry.unpin(false);
        }
        count.store(next, Ordering::Release);
    }
}

/// The count after one more pin, and the frame; the shared entry is only changed by the first reader and writer.
#[inline]
fn take(entry: &Entry, me: DomId, now: u32, write: bool) -> std::result::Result<(u32, u32), i16> {
    let full = if write { now & WRITERS == WRITERS } else { now & READERS == READERS };
    if full {
        return Err(GENERAL_ERROR);
    }
    let held = if write { now & WRITERS != 0 } else { now != 0 };
    let frame = if held { entry.frame() } else { entry.pin(me, write)? };
    Ok((now + if write { WRITER } else { READER }, frame))
}

#[cfg(test)]
mod tests {
    use super::super::layout::Layout;
    use super::*;

    const ME: DomId = DomId(2);

    fn world() -> (Arena, Pins, GrantRef) {
        let layout = Layout::new(64).unwrap();
        let arena = Arena::create(layout).unwrap();
        arena.entry(GrantRef(8)).unwrap().permit(ME, layout.first(), false);
        (arena, Pins::new(layout.entries()).unwrap(), GrantRef(8))
    }

    #[test]
    fn the_last_of_several_lets_go() {
        let (arena, pins, gref) = world();
        let entry = arena.entry(gref).unwrap();
        for write in [false, true, true, false] {
            pins.pin(&arena, ME, gref, write).unwrap();
        }
        for write in [true, false, true] {
            pins.unpin(&arena, gref, write);
            assert!(!entry.idle());
        }
        pins.unpin(&arena, gref, false);
        assert!(entry.revoke());
        assert_eq!(pins.pin(&arena, ME, gref, false), Err(GENERAL_ERROR));
    }

    #[test]
    fn counts_do_not_overflow() {
        let (arena, pins, gref) = world();
        for _ in 0..READERS {
            pins.pin(&arena, ME, gref, false).unwrap();
        }
        assert_eq!(pins.pin(&arena, ME, gref, false), Err(GENERAL_ERROR));
        pins.pin(&arena, ME, gref, true).unwrap();
        (0..READERS).for_each(|_| pins.unpin(&arena, gref, false));
        pins.unpin(&arena, gref, true);
        assert!(arena.entry(gref).unwrap().idle());
    }

    #[test]
    fn a_made_up_frame_leaves_no_pin() {
        let (arena, pins, gref) = world();
        let entry = arena.entry(gref).unwrap();
        entry.permit(ME, 0, false);
        assert_eq!(pins.pin(&arena, ME, gref, true), Err(BAD_PAGE));
        assert!(entry.idle());
        assert_eq!(pins.pin(&arena, ME, GrantRef(u32::MAX), true), Err(BAD_REF));
    }

    #[test]
    fn threads_pinning_one_page_never_leave_it_unmarked() {
        let (arena, pins, gref) = world();
        let entry = arena.entry(gref).unwrap();
        std::thread::scope(|scope| {
            for thread in 0..4 {
                let (arena, pins) = (&arena, &pins);
                scope.spawn(move || {
                    for turn in 0..2000 {
                        let write = (turn + thread) % 3 == 0;
                        pins.pin(arena, ME, gref, write).unwrap();
                        assert!(!entry.idle(), "pinned but not marked");
                        pins.unpin(arena, gref, write);
                    }
                });
            }
        });
        assert!(entry.idle());
    }
}
