//! Pin counts of a peer's pages. They are private, so that two mappings of one page are released correctly whatever
//! the owner writes into its table.
//!
//! The shared entry is changed atomically, as the owner changes it too, but only for the first and the last user of a
//! page. The counts change under the arena's lock, which is taken once a call: on x86 an atomic operation costs as
//! much as all the rest of mapping a page.

use super::arena::Arena;
use super::entry::Entry;
use crate::{Error, Result};
use memmap2::MmapMut;
use ring_abi::grant::Status;
use ring_abi::{DomId, GrantRef};
use std::ptr::NonNull;

const READER: u32 = 1;
const WRITER: u32 = 1 << 16;
const READERS: u32 = WRITER - 1;
const WRITERS: u32 = !READERS;

/// Counts of readers and writers for each entry of one arena.
#[derive(Debug)]
pub(super) struct Pins {
    /// A `u32` an entry; a page of it costs memory once it is written.
    counts: MmapMut,
}

impl Pins {
    /// Creates counts of zero for `entries` entries.
    pub(super) fn new(entries: u32) -> Result<Self> {
        let bytes = entries as usize * size_of::<u32>();
        let counts = MmapMut::map_anon(bytes).map_err(|e| Error::io("allocate the pin counts", e))?;
        Ok(Self { counts })
    }

    #[inline]
    fn count(&mut self, gref: GrantRef) -> Option<&mut [u8; 4]> {
        let at = gref.0 as usize * size_of::<u32>();
        self.counts.get_mut(at..)?.first_chunk_mut()
    }

    /// Pins the page that `me` was granted by `gref`, and returns its address.
    ///
    /// # Errors
    /// A reference beyond the table, an entry that does not permit it, or an entry whose frame is not grantable.
    #[inline]
    pub(super) fn pin(
        &mut self,
        arena: &Arena,
        me: DomId,
        gref: GrantRef,
        write: bool,
    ) -> std::result::Result<NonNull<u8>, Status> {
        let (Some(entry), Some(count)) = (arena.entry(gref), self.count(gref)) else {
            return Err(Status::BAD_GNTREF);
        };
        let (next, frame) = pin_entry(entry, me, u32::from_ne_bytes(*count), write)?;
        *count = next.to_ne_bytes();
        arena.page(frame).ok_or_else(|| {
            self.unpin(arena, gref, write);
            Status::BAD_PAGE
        })
    }

    /// Undoes one [`Pins::pin`].
    #[inline]
    pub(super) fn unpin(&mut self, arena: &Arena, gref: GrantRef, write: bool) {
        let (Some(entry), Some(count)) = (arena.entry(gref), self.count(gref)) else { return };
        let next = u32::from_ne_bytes(*count).saturating_sub(if write { WRITER } else { READER });
        *count = next.to_ne_bytes();
        if next == 0 {
            entry.unpin(true);
        } else if write && next & WRITERS == 0 {
            entry.unpin(false);
        }
    }
}

/// Returns the count after one more pin, and the frame. Only the first reader and the first writer change the entry.
#[inline]
fn pin_entry(entry: &Entry, me: DomId, now: u32, write: bool) -> std::result::Result<(u32, u32), Status> {
    let full = if write { now & WRITERS == WRITERS } else { now & READERS == READERS };
    if full {
        return Err(Status::GENERAL_ERROR);
    }
    let pinned = if write { now & WRITERS != 0 } else { now != 0 };
    let frame = if pinned { entry.frame() } else { entry.pin(me, write)? };
    Ok((now + if write { WRITER } else { READER }, frame))
}

#[cfg(test)]
mod tests {
    use super::super::layout::Layout;
    use super::*;

    const ME: DomId = DomId(2);

    fn setup() -> (Arena, Pins, GrantRef) {
        let layout = Layout::new(64).unwrap();
        let arena = Arena::create(layout).unwrap();
        arena.entry(GrantRef(8)).unwrap().permit(ME, layout.first(), false);
        (arena, Pins::new(layout.entries()).unwrap(), GrantRef(8))
    }

    #[test]
    fn page_pinned_several_times_is_idle_after_the_last_unpin() {
        let (arena, mut pins, gref) = setup();
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
        assert_eq!(pins.pin(&arena, ME, gref, false), Err(Status::GENERAL_ERROR));
    }

    #[test]
    fn pin_beyond_the_largest_count_is_an_error() {
        let (arena, mut pins, gref) = setup();
        for _ in 0..READERS {
            pins.pin(&arena, ME, gref, false).unwrap();
        }
        assert_eq!(pins.pin(&arena, ME, gref, false), Err(Status::GENERAL_ERROR));
        pins.pin(&arena, ME, gref, true).unwrap();
        (0..READERS).for_each(|_| pins.unpin(&arena, gref, false));
        pins.unpin(&arena, gref, true);
        assert!(arena.entry(gref).unwrap().idle());
    }

    #[test]
    fn pin_of_an_invalid_frame_leaves_no_pin() {
        let (arena, mut pins, gref) = setup();
        let entry = arena.entry(gref).unwrap();
        entry.permit(ME, 0, false);
        assert_eq!(pins.pin(&arena, ME, gref, true), Err(Status::BAD_PAGE));
        assert!(entry.idle());
        assert_eq!(pins.pin(&arena, ME, GrantRef(u32::MAX), true), Err(Status::BAD_GNTREF));
    }
}
