//! What of a peer's arena this domain has mapped: private counts, so that two mappings of one page are released
//! correctly whatever the owner writes into its table.
//!
//! The shared entry is changed atomically, since its owner changes it too, but only by the first and last holder of
//! a page. The counts are ours alone and change under the arena's lock, which is taken once a call: on x86 an atomic
//! operation costs as much as all the rest of mapping a page.

use super::arena::Arena;
use super::entry::{BAD_PAGE, BAD_REF, Entry, GENERAL_ERROR};
use crate::{Error, Result};
use memmap2::MmapMut;
use ring_abi::{DomId, GrantRef};
use std::ptr::NonNull;

const READER: u32 = 1;
const WRITER: u32 = 1 << 16;
const READERS: u32 = WRITER - 1;
const WRITERS: u32 = !READERS;

/// Counts of readers and writers for each entry of one arena.
#[derive(Debug)]
pub(super) struct Pins {
    /// A `u32` an entry; memory is spent on those that are used.
    counts: MmapMut,
}

impl Pins {
    /// None yet.
    pub(super) fn new(entries: u32) -> Result<Self> {
        let bytes = entries as usize * size_of::<u32>();
        let counts = MmapMut::map_anon(bytes).map_err(|e| Error::io("map the pin counts", e))?;
        Ok(Self { counts })
    }

    #[inline]
    fn count(&mut self, gref: GrantRef) -> Option<&mut [u8; 4]> {
        let at = gref.0 as usize * size_of::<u32>();
        self.counts.get_mut(at..)?.first_chunk_mut()
    }

    /// Pins the page that `me` was granted by `gref`, and says where it is.
    ///
    /// # Errors
    /// `GNTST_*`.
    #[inline]
    pub(super) fn pin(
        &mut self,
        arena: &Arena,
        me: DomId,
        gref: GrantRef,
        write: bool,
    ) -> std::result::Result<NonNull<u8>, i16> {
        let (Some(entry), Some(count)) = (arena.entry(gref), self.count(gref)) else {
            return Err(BAD_REF);
        };
        let (next, frame) = take(entry, me, u32::from_ne_bytes(*count), write)?;
        *count = next.to_ne_bytes();
        arena.page(frame).ok_or_else(|| {
            self.unpin(arena, gref, write);
            BAD_PAGE
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
        let (arena, mut pins, gref) = world();
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
        let (arena, mut pins, gref) = world();
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
        let (arena, mut pins, gref) = world();
        let entry = arena.entry(gref).unwrap();
        entry.permit(ME, 0, false);
        assert_eq!(pins.pin(&arena, ME, gref, true), Err(BAD_PAGE));
        assert!(entry.idle());
        assert_eq!(pins.pin(&arena, ME, GrantRef(u32::MAX), true), Err(BAD_REF));
    }
}
