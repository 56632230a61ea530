//! Requests that a backend has taken and not yet answered, recorded in memory that outlives its process.
//!
//! A ring alone does not tell which they are: responses are written in any order and overwrite the slots of requests
//! that were not answered. A backend that records them in a file can be killed at any instruction: its successor finds
//! each request that was taken, answers it, and continues behind it ([`Back::resume_at`](ring_abi::ring::Back::resume_at)), without
//! the frontend's help. Nothing here is shared with the peer.
//!
//! An entry is free, taken, or answered by a response that may not be published yet. A backend killed between two of
//! these steps leaves an entry that records less than was done, never more: such a request is carried out twice, which
//! on a disk has the same result as once.
//!
//! The memory holds a head with the index of the next request, and for each entry: state, index of its request, index
//! of its response, 0, and the request's bytes.

use crate::log_memory::{self, Format, LogMemory, LogMismatch, compiler_barrier};
use ring_abi::ring::Protocol;
use ring_abi::shm::{Memory, Slot};

const MAGIC: u32 = u32::from_le_bytes(*b"xpv1");
const VERSION: u32 = 1;
const ENTRY: usize = 16;

const FREE: u32 = 0;
const TAKEN: u32 = 1;
const ANSWERED: u32 = 2;

/// The in-flight log of one ring, with an entry for each request that can be in flight. The owner assigns entries to
/// requests.
#[derive(Debug)]
pub struct InflightLog<P, M>(LogMemory<P, M>);

impl<P: Protocol, M: Memory> InflightLog<P, M> {
    /// Bytes of an entry.
    const STRIDE: usize = ENTRY + P::SLOT.next_multiple_of(8);
    const FORMAT: Format = Format { magic: MAGIC, version: VERSION, stride: Self::STRIDE };

    /// Bytes of memory, in whole pages, for an in-flight log of so many entries.
    pub const fn bytes(entries: u32) -> usize {
        log_memory::bytes(entries, Self::STRIDE)
    }

    /// An empty in-flight log; `taken` is the index of the ring's next request.
    ///
    /// # Errors
    /// [`LogMismatch`] where the memory is too small.
    pub fn start(memory: M, entries: u32, taken: u32) -> Result<Self, LogMismatch> {
        LogMemory::start(memory, entries, Self::FORMAT, taken, |entry| entry.store32(0, FREE)).map(Self)
    }

    /// The in-flight log that an earlier backend has left in `memory`.
    ///
    /// # Errors
    /// [`LogMismatch`] where `memory` does not hold an in-flight log of this protocol, size and version.
    pub fn open(memory: M, entries: u32) -> Result<Self, LogMismatch> {
        LogMemory::open(memory, entries, Self::FORMAT).map(Self)
    }

    /// Index of the next request to be taken.
    pub fn taken(&self) -> u32 {
        self.0.index()
    }

    /// Records that the request of `index` was taken from the ring, in a free entry.
    #[inline]
    pub fn take(&mut self, entry: u32, index: u32, request: &P::Request) {
        let record = self.entry(entry);
        record.store32(4, index);
        P::write_request(self.request(entry), request);
        compiler_barrier();
        record.store32(0, TAKEN);
        compiler_barrier();
        self.0.set_index(index.wrapping_add(1));
    }

    /// Records that the entry's response is about to be written into the ring, as response `index`.
    #[inline]
    pub fn answer(&mut self, entry: u32, index: u32) {
        let record = self.entry(entry);
        record.store32(8, index);
        compiler_barrier();
        record.store32(0, ANSWERED);
        compiler_barrier();
    }

    /// Frees the entry, whose response was published.
    #[inline]
    pub fn end(&mut self, entry: u32) {
        compiler_barrier();
        self.entry(entry).store32(0, FREE);
    }

    /// The request of an entry that was taken and whose answer did not reach the frontend, which has seen all
    /// responses below index `published`: its index and what it asks. `None` for an entry that is free, which it is
    /// from here on.
    pub fn unanswered(&mut self, entry: u32, published: u32) -> Option<(u32, P::Request)> {
        let record = self.entry(entry);
        let index = record.load32(4);
        let lost = match record.load32(0) {
            // A request that was not seen to be taken is taken again from the ring.
            TAKEN => index != self.taken(),
            ANSWERED => record.load32(8).wrapping_sub(published) < self.0.entries(),
            _ => false,
        };
        record.store32(0, if lost { TAKEN } else { FREE });
        lost.then(|| (index, P::read_request(self.request(entry))))
    }

    #[inline]
    fn entry(&self, entry: u32) -> Slot<'_> {
        self.0.entry(entry, 0, ENTRY)
    }

    #[inline]
    fn request(&self, entry: u32) -> Slot<'_> {
        self.0.entry(entry, ENTRY, P::SLOT)
    }
}
