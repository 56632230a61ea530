//! Responses on their way into a ring, kept in memory that outlives the back end's process.
//!
//! For rings whose responses come in the order of their requests, each in its request's slot: every request that was
//! taken and not answered stands in the ring still, and a successor takes it from there. Only whoever is killed after
//! writing responses and before publishing them leaves slots that are neither the one nor the other. What was to stand
//! there is known from here, and is written again: no request is answered twice, none is left out, and what belongs
//! together is published together. Nothing here is shared with the peer.
//!
//! | octets | what |
//! |---|---|
//! | 0, 4, 8, 12 | magic, octets of a slot, number of slots, index behind the last response |
//! | 64 + n x stride | the response in slot n |

use super::ledger::Unfit;
use super::{Back, Fault, Notify, Protocol};
use crate::PAGE_SIZE;
use crate::shm::{Memory, Slot};
use core::marker::PhantomData;
use core::sync::atomic::{Ordering, compiler_fence};

const MAGIC: u32 = u32::from_le_bytes(*b"xpvJ");
const HEADER: usize = 64;

/// The journal of one ring.
#[derive(Debug)]
pub struct Journal<P, M> {
    memory: M,
    slots: u32,
    protocol: PhantomData<fn() -> P>,
}

impl<P: Protocol, M: Memory> Journal<P, M> {
    const STRIDE: usize = P::SLOT.next_multiple_of(8);

    /// Octets of memory, in whole pages, for the journal of a ring of so many slots, a power of two.
    pub const fn octets(slots: u32) -> usize {
        (HEADER + slots as usize * Self::STRIDE).next_multiple_of(PAGE_SIZE)
    }

    /// The journal of a ring that is joined now.
    ///
    /// # Errors
    /// [`Unfit`] where the memory is too small.
    pub fn start<R: Memory>(memory: M, ring: &Back<P, R>) -> Result<Self, Unfit> {
        let journal = Self::over(memory, ring.size())?;
        let header = journal.header();
        // Until it is whole it is none.
        header.store32(0, 0);
        compiler_fence(Ordering::Release);
        header.store32(4, P::SLOT as u32);
        header.store32(8, ring.size());
        header.store32(12, ring.produced());
        compiler_fence(Ordering::Release);
        header.store32(0, MAGIC);
        Ok(journal)
    }

    /// The journal that an earlier back end of `ring` has left in `memory`.
    ///
    /// # Errors
    /// [`Unfit`] where there is none of this size.
    pub fn open<R: Memory>(memory: M, ring: &Back<P, R>) -> Result<Self, Unfit> {
        let journal = Self::over(memory, ring.size())?;
        let header = journal.header();
        let expected =
            [("magic", 0, MAGIC), ("octets of a slot", 4, P::SLOT as u32), ("slots", 8, ring.size())];
        for (what, offset, expected) in expected {
            let found = header.load32(offset);
            if found != expected {
                return Err(Unfit { ring: P::NAME, what, found, expected });
            }
        }
        Ok(journal)
    }

    fn over(memory: M, slots: u32) -> Result<Self, Unfit> {
        let (found, expected) = (memory.len(), Self::octets(slots));
        if found < expected {
            let (found, expected) = (found as u32, expected as u32);
            return Err(Unfit { ring: P::NAME, what: "octets", found, expected });
        }
        Ok(Self { memory, slots, protocol: PhantomData })
    }

    /// Publishes what the earlier back end has begun to publish; `ring` goes on behind that.
    ///
    /// # Errors
    /// [`Fault`] where the ring's indexes are not those of the journal's ring.
    pub fn redo<R: Memory>(&self, ring: &mut Back<P, R>) -> Result<Notify, Fault> {
        let end = self.header().load32(12);
        ring.rejoin(end)?;
        while ring.produced() != end {
            ring.push(&P::read_response(self.slot(ring.produced())));
        }
        Ok(ring.commit())
    }

    /// Writes responses into the ring: all of them, if not by this process then by its successor.
    ///
    /// # Panics
    /// As [`Back::push`].
    #[inline]
    pub fn push<R: Memory>(
        &mut self,
        ring: &mut Back<P, R>,
        responses: impl Iterator<Item = P::Response> + Clone,
    ) {
        let mut end = ring.produced();
        for response in responses.clone() {
            P::write_response(self.slot(end), &response);
            end = end.wrapping_add(1);
        }
        compiler_fence(Ordering::Release);
        self.header().store32(12, end);
        compiler_fence(Ordering::Release);
        responses.for_each(|response| ring.push(&response));
    }

    fn header(&self) -> Slot<'_> {
        self.octets_at(0, HEADER)
    }

    #[inline]
    fn slot(&self, index: u32) -> Slot<'_> {
        self.octets_at(HEADER + (index & (self.slots - 1)) as usize * Self::STRIDE, P::SLOT)
    }

    #[inline]
    #[allow(unsafe_code)] // Addressed by place, as the ring's slots are.
    fn octets_at(&self, offset: usize, len: usize) -> Slot<'_> {
        // SAFETY: places lie within `octets(slots)`, which the memory is known to have; the header and every stride
        // are multiples of 8.
        unsafe { Slot::within(self.memory.base(), offset, len) }
    }
}
