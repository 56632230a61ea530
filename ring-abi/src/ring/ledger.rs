//! What a back end has taken and not yet answered, kept in memory that outlives its process.
//!
//! A ring alone does not tell: answers come in any order and overwrite the slots of requests that were not answered.
//! A back end that keeps a ledger in a file can be killed at any instruction; its successor finds each request that
//! was taken, answers it, and goes on behind it ([`Back::rejoin`](super::Back::rejoin)), and the front end never
//! knows. Nothing here is shared with the peer.
//!
//! An entry is free, taken, or answered by a response that may not be published yet. Whoever is killed between two of
//! these steps leaves an entry that says less than was done, never more: a request is then carried out twice, which for
//! disks is once.
//!
//! | octets | what |
//! |---|---|
//! | 0, 4, 8, 12 | magic, octets of a slot, number of entries, index of the next request |
//! | 64 + n x stride | entry n: state, index of its request, index of its response, 0, the request's octets |

use super::Protocol;
use crate::PAGE_SIZE;
use crate::shm::{Memory, Slot};
use core::marker::PhantomData;
use core::sync::atomic::{Ordering, compiler_fence};

const MAGIC: u32 = u32::from_le_bytes(*b"xpv1");
const HEADER: usize = 64;
const ENTRY: usize = 16;

const FREE: u32 = 0;
const TAKEN: u32 = 1;
const ANSWERED: u32 = 2;

/// What is kept is no ledger of this ring.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[error(
    "{ring}: what was kept of requests under way does not fit: found {found}, expected {expected} ({what})"
)]
pub struct Unfit {
    /// [`Protocol::NAME`].
    pub ring: &'static str,
    /// Of which of its words that is said.
    pub what: &'static str,
    /// What stands there.
    pub found: u32,
    /// What should.
    pub expected: u32,
}

/// The ledger of one ring, with an entry for each request that can be under way. Who uses which entry is its owner's
/// affair.
#[derive(Debug)]
pub struct Ledger<P, M> {
    memory: M,
    entries: u32,
    protocol: PhantomData<fn() -> P>,
}

impl<P: Protocol, M: Memory> Ledger<P, M> {
    /// Octets of an entry.
    const STRIDE: usize = ENTRY + P::SLOT.next_multiple_of(8);

    /// Octets of memory, in whole pages, for a ledger of so many entries.
    pub const fn octets(entries: u32) -> usize {
        (HEADER + entries as usize * Self::STRIDE).next_multiple_of(PAGE_SIZE)
    }

    /// An empty ledger of a ring of which `taken` is the next request.
    ///
    /// # Errors
    /// [`Unfit`] where the memory is too small.
    pub fn start(memory: M, entries: u32, taken: u32) -> Result<Self, Unfit> {
        let ledger = Self::over(memory, entries)?;
        let header = ledger.header();
        // Until it is whole it is none.
        header.store32(0, 0);
        compiler_fence(Ordering::Release);
        (0..entries).for_each(|entry| ledger.entry(entry).store32(0, FREE));
        header.store32(4, P::SLOT as u32);
        header.store32(8, entries);
        header.store32(12, taken);
        compiler_fence(Ordering::Release);
        header.store32(0, MAGIC);
        Ok(ledger)
    }

    /// The ledger that an earlier back end has left in `memory`.
    ///
    /// # Errors
    /// [`Unfit`] where there is none of this size.
    pub fn open(memory: M, entries: u32) -> Result<Self, Unfit> {
        let ledger = Self::over(memory, entries)?;
        let header = ledger.header();
        let expected =
            [("magic", 0, MAGIC), ("octets of a slot", 4, P::SLOT as u32), ("entries", 8, entries)];
        for (what, offset, expected) in expected {
            let found = header.load32(offset);
            if found != expected {
                return Err(Unfit { ring: P::NAME, what, found, expected });
            }
        }
        Ok(ledger)
    }

    fn over(memory: M, entries: u32) -> Result<Self, Unfit> {
        let (found, expected) = (memory.len(), Self::octets(entries));
        if found < expected {
            let (found, expected) = (found as u32, expected as u32);
            return Err(Unfit { ring: P::NAME, what: "octets", found, expected });
        }
        Ok(Self { memory, entries, protocol: PhantomData })
    }

    /// Entries.
    pub fn entries(&self) -> u32 {
        self.entries
    }

    /// Index of the next request to be taken.
    pub fn taken(&self) -> u32 {
        self.header().load32(12)
    }

    /// A request was taken from the ring: the one of `index`, into a free entry.
    #[inline]
    pub fn take(&mut self, entry: u32, index: u32, request: &P::Request) {
        let record = self.entry(entry);
        record.store32(4, index);
        P::write_request(self.request(entry), request);
        compiler_fence(Ordering::Release);
        record.store32(0, TAKEN);
        compiler_fence(Ordering::Release);
        self.header().store32(12, index.wrapping_add(1));
    }

    /// The entry's answer is about to be written into the ring, as response `index`.
    #[inline]
    pub fn answer(&mut self, entry: u32, index: u32) {
        let record = self.entry(entry);
        record.store32(8, index);
        compiler_fence(Ordering::Release);
        record.store32(0, ANSWERED);
        compiler_fence(Ordering::Release);
    }

    /// The entry's answer was published: the entry is free.
    #[inline]
    pub fn end(&mut self, entry: u32) {
        compiler_fence(Ordering::Release);
        self.entry(entry).store32(0, FREE);
    }

    /// The request of an entry that was taken and whose answer did not reach the front end, which has seen all
    /// responses below index `published`: its index and what it asks. `None` for an entry that is free, which it is
    /// from here on.
    pub fn unanswered(&mut self, entry: u32, published: u32) -> Option<(u32, P::Request)> {
        let record = self.entry(entry);
        let index = record.load32(4);
        let lost = match record.load32(0) {
            // A request that was not seen to be taken is taken again from the ring.
            TAKEN => index != self.taken(),
            ANSWERED => record.load32(8).wrapping_sub(published) < self.entries,
            _ => false,
        };
        record.store32(0, if lost { TAKEN } else { FREE });
        lost.then(|| (index, P::read_request(self.request(entry))))
    }

    fn header(&self) -> Slot<'_> {
        self.octets_at(0, HEADER)
    }

    #[inline]
    fn entry(&self, entry: u32) -> Slot<'_> {
        self.octets_at(self.place(entry), ENTRY)
    }

    #[inline]
    fn request(&self, entry: u32) -> Slot<'_> {
        self.octets_at(self.place(entry) + ENTRY, P::SLOT)
    }

    #[inline]
    fn place(&self, entry: u32) -> usize {
        assert!(entry < self.entries, "entry {entry} of {}", self.entries);
        HEADER + entry as usize * Self::STRIDE
    }

    #[inline]
    #[allow(unsafe_code)] // Addressed by place, as the ring's slots are.
    fn octets_at(&self, offset: usize, len: usize) -> Slot<'_> {
        // SAFETY: callers' places lie within `octets(entries)`, which the memory is known to have; both the
        // header and every stride are multiples of 8.
        unsafe { Slot::within(self.memory.base(), offset, len) }
    }
}
