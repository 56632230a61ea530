//! Responses on their way into a ring, kept in memory that outlives the back end's process.
//!
//! For rings whose responses come in the order of their requests, each in its request's slot: every request that was
//! taken and not answered stands in the ring still, and a successor takes it from there. Only whoever is killed after
//! writing responses and before publishing them leaves slots that are neither the one nor the other. What was to stand
//! there is known from here, and is written again: no request is answered twice, none is left out, and what belongs
//! together is published together. Nothing here is shared with the peer.
//!
//! Its memory has a head with the index behind the last response, and a response for each slot.

use super::kept::{self, Kept, step};
use super::{Back, Fault, Protocol};
use crate::shm::{Memory, Slot};

pub use super::kept::Unfit;

const MAGIC: u32 = u32::from_le_bytes(*b"xpvJ");

/// What an earlier back end has left cannot be taken up.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum Left {
    /// It is of another kind.
    #[error(transparent)]
    Unfit(#[from] Unfit),
    /// The ring is not where it was.
    #[error(transparent)]
    Ring(#[from] Fault),
}

/// The journal of one ring.
#[derive(Debug)]
pub struct Journal<P, M>(Kept<P, M, MAGIC>);

impl<P: Protocol, M: Memory> Journal<P, M> {
    const STRIDE: usize = P::SLOT.next_multiple_of(8);

    /// Octets of memory, in whole pages, for the journal of a ring of so many slots, a power of two.
    pub const fn octets(slots: u32) -> usize {
        kept::octets(slots, Self::STRIDE)
    }

    /// The journal of a ring that is joined now.
    ///
    /// # Errors
    /// [`Unfit`] where the memory is too small.
    pub fn start<R: Memory>(memory: M, ring: &Back<P, R>) -> Result<Self, Unfit> {
        Kept::start(memory, ring.size(), Self::STRIDE, ring.produced(), |_| ()).map(Self)
    }

    /// The journal that an earlier back end of `ring` has left in `memory`. What that one has begun to publish is
    /// published, and `ring` goes on behind it; the front end is to be notified whether or not it asked.
    ///
    /// # Errors
    /// [`Left`].
    pub fn resume<R: Memory>(memory: M, ring: &mut Back<P, R>) -> Result<Self, Left> {
        let journal = Self(Kept::open(memory, ring.size(), Self::STRIDE)?);
        let end = journal.0.index();
        ring.rejoin(end)?;
        while ring.produced() != end {
            ring.push(&P::read_response(journal.slot(ring.produced())));
        }
        let _ = ring.commit();
        Ok(journal)
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
        step();
        self.0.set_index(end);
        step();
        responses.for_each(|response| ring.push(&response));
    }

    #[inline]
    fn slot(&self, index: u32) -> Slot<'_> {
        self.0.entry(index & (self.0.entries() - 1), 0, P::SLOT)
    }
}
