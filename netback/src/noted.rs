//! A ring that may have a journal: what both rings of a vif need to be gone on with by another process.

use ring_abi::ring::journal::{Journal, Left, Unfit};
use ring_abi::ring::{Back, BadMemory, Protocol};
use ring_abi::shm::Memory;
use std::ops::{Deref, DerefMut};

/// The back end's half of a ring, and its journal if it has one. Responses are pushed here, or the journal misses them.
#[derive(Debug)]
pub struct Noted<P, M, K> {
    ring: Back<P, M>,
    journal: Option<Journal<P, K>>,
}

impl<P: Protocol, M: Memory, K: Memory> Noted<P, M, K> {
    pub(crate) fn attach(memory: M) -> Result<Self, BadMemory> {
        Ok(Self { ring: Back::attach(memory)?, journal: None })
    }

    /// Octets of a journal of this ring.
    pub fn journal_octets(&self) -> usize {
        Journal::<P, K>::octets(self.ring.size())
    }

    /// Begins a journal in `memory`.
    ///
    /// # Errors
    /// [`Unfit`] where it is too small.
    pub fn note(&mut self, memory: K) -> Result<(), Unfit> {
        self.journal = Some(Journal::start(memory, &self.ring)?);
        Ok(())
    }

    /// Goes on where an earlier back end has left the journal in `memory`: what it began to answer is answered, and
    /// everything behind that is taken again. The guest is to be notified whether or not it asked.
    ///
    /// # Errors
    /// [`Left`]: it is not this ring's, or the ring not as it was.
    pub fn resume(&mut self, memory: K) -> Result<(), Left> {
        self.journal = Some(Journal::resume(memory, &mut self.ring)?);
        Ok(())
    }

    /// Whether there is a journal: responses come in the order of their requests then.
    #[inline]
    pub(crate) fn is_noted(&self) -> bool {
        self.journal.is_some()
    }

    /// Writes responses that belong together.
    #[inline]
    pub(crate) fn push_all(&mut self, responses: impl Iterator<Item = P::Response> + Clone) {
        match &mut self.journal {
            None => responses.for_each(|response| self.ring.push(&response)),
            Some(journal) => journal.push(&mut self.ring, responses),
        }
    }

    pub(crate) fn into_memory(self) -> M {
        self.ring.into_memory()
    }
}

impl<P, M, K> Deref for Noted<P, M, K> {
    type Target = Back<P, M>;

    #[inline]
    fn deref(&self) -> &Back<P, M> {
        &self.ring
    }
}

impl<P, M, K> DerefMut for Noted<P, M, K> {
    #[inline]
    fn deref_mut(&mut self) -> &mut Back<P, M> {
        &mut self.ring
    }
}
