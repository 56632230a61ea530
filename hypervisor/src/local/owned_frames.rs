//! The frames of an arena that the peer owns, as it took them over: its private list, which the arena's owner cannot
//! change. It transfers only frames of this list, and takes over only frames that are not in it.

use super::arena::Arena;
use super::balloon;
use ring_abi::grant::Status;
use ring_abi::{DomId, GrantRef};

/// The frames of one arena that this domain owns.
#[derive(Debug, Default)]
pub(super) struct OwnedFrames {
    /// For each frame the serial number of its last use, or 0 if this domain does not own it. Empty until the first.
    serials: Vec<u32>,
    /// Owned frames that are not in use.
    pool: Vec<u32>,
    last_serial: u32,
}

impl OwnedFrames {
    /// Takes over frames that the owner gave up until `frames` of them are not in use or the queue is empty.
    pub(super) fn fill(&mut self, arena: &Arena, frames: usize) {
        let layout = arena.layout();
        self.serials.resize(layout.pages() as usize, 0);
        let missing = frames.saturating_sub(self.pool.len());
        balloon::pop(arena, missing, |frame| {
            if layout.grantable(frame) && self.serials[frame as usize] == 0 {
                self.renew_serial(frame);
                self.pool.push(frame);
            }
        });
    }

    /// Takes a frame into use; returns it with the serial number of this use.
    pub(super) fn take(&mut self) -> Option<(u32, u32)> {
        let frame = self.pool.pop()?;
        let serial = self.renew_serial(frame);
        Some((frame, serial))
    }

    /// Ends a frame's use. Does nothing if the frame was transferred since [`take`](OwnedFrames::take).
    pub(super) fn put_back(&mut self, frame: u32, serial: u32) {
        if self.serials.get(frame as usize) == Some(&serial) {
            self.pool.push(frame);
        }
    }

    /// Transfers a frame, in its use of this serial number, to an entry of `arena` that accepts it from `me`, this domain.
    ///
    /// # Errors
    /// The operation's status: a reference beyond the table, a frame that this domain does not own, or an entry that
    /// does not accept it. The frame is still owned then.
    pub(super) fn transfer(
        &mut self,
        arena: &Arena,
        me: DomId,
        frame: u64,
        use_serial: u32,
        gref: GrantRef,
    ) -> Result<(), Status> {
        let entry = arena.entry(gref).ok_or(Status::BAD_GNTREF)?;
        let serial = usize::try_from(frame).ok().and_then(|at| self.serials.get_mut(at));
        let serial =
            serial.filter(|serial| **serial != 0 && **serial == use_serial).ok_or(Status::BAD_PAGE)?;
        entry.commit(me)?;
        *serial = 0;
        entry.complete(frame as u32);
        Ok(())
    }

    /// Gives `frame` a new serial number, never 0, so that an earlier use of it cannot return it.
    fn renew_serial(&mut self, frame: u32) -> u32 {
        self.last_serial = self.last_serial.wrapping_add(1).max(1);
        self.serials[frame as usize] = self.last_serial;
        self.last_serial
    }
}

#[cfg(test)]
mod tests {
    use super::super::layout::Layout;
    use super::*;
    use proptest::prelude::*;
    use std::collections::HashSet;

    const BACK: DomId = DomId(0);

    /// An arena whose owner queued these frames, valid or not.
    fn arena_with_queue(frames: &[u32]) -> Arena {
        let arena = Arena::create(Layout::new(64).unwrap()).unwrap();
        balloon::push(&arena, &mut 0, frames);
        arena
    }

    proptest! {
        #[test]
        fn fill_takes_each_grantable_queued_frame_once(frames in proptest::collection::vec(0u32..80, 0..64)) {
            let arena = arena_with_queue(&frames);
            let mut owned = OwnedFrames::default();
            owned.fill(&arena, 1_000);
            let layout = arena.layout();
            let expected: HashSet<_> = frames.into_iter().filter(|frame| layout.grantable(*frame)).collect();
            prop_assert_eq!(owned.pool.len(), expected.len());
            prop_assert_eq!(owned.pool.iter().copied().collect::<HashSet<_>>(), expected);
        }

        #[test]
        fn fill_with_any_queue_indexes_is_bounded(produced: u32, consumed: u32) {
            use std::sync::atomic::Ordering;
            let arena = arena_with_queue(&[]);
            let header = arena.layout().balloon();
            arena.word(header).store(produced, Ordering::Relaxed);
            arena.word(header + 64).store(consumed, Ordering::Relaxed);
            let mut owned = OwnedFrames::default();
            owned.fill(&arena, 1_000);
            prop_assert!(owned.pool.len() <= 64);
        }
    }

    #[test]
    fn transfer_of_a_frame_that_is_not_owned_is_refused() {
        let first = Layout::new(64).unwrap().first();
        let arena = arena_with_queue(&[first]);
        let gref = GrantRef(9);
        arena.entry(gref).unwrap().accept(BACK);
        let mut owned = OwnedFrames::default();
        assert_eq!(owned.transfer(&arena, BACK, first.into(), 0, gref), Err(Status::BAD_PAGE));
        owned.fill(&arena, 1);
        let (_, earlier) = owned.take().unwrap();
        owned.put_back(first, earlier);
        let (_, serial) = owned.take().unwrap();
        for frame in [u64::from(first) + 1, u64::from(first) + (1 << 32), u64::MAX] {
            assert_eq!(owned.transfer(&arena, BACK, frame, serial, gref), Err(Status::BAD_PAGE));
        }
        let transfer =
            |owned: &mut OwnedFrames, serial, gref| owned.transfer(&arena, BACK, first.into(), serial, gref);
        assert_eq!(transfer(&mut owned, serial, GrantRef(u32::MAX)), Err(Status::BAD_GNTREF));
        assert_eq!(transfer(&mut owned, earlier, gref), Err(Status::BAD_PAGE), "an earlier use of the frame");
        assert_eq!(transfer(&mut owned, serial, gref), Ok(()));
        assert_eq!(transfer(&mut owned, serial, gref), Err(Status::BAD_PAGE), "transferred twice");
    }
}
