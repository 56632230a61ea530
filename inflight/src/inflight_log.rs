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
//! of its response, a checksum of its request and the request's bytes. Version 1 had no checksum.

use alloc::vec::Vec;

use crate::log_memory::{self, Format, LogMemory, LogMismatch, compiler_barrier};
use ring_abi::ring::Protocol;
use ring_abi::shm::{Memory, Slot};

const MAGIC: u32 = u32::from_le_bytes(*b"xpv1");
const VERSION: u32 = 2;
const ENTRY: usize = 16;

/// Offsets of an entry's words.
const STATE: usize = 0;
const INDEX: usize = 4;
const RESPONSE: usize = 8;
const CHECKSUM: usize = 12;

const FREE: u32 = 0;
const TAKEN: u32 = 1;
const ANSWERED: u32 = 2;

/// An entry does not hold what a backend has recorded: the log cannot be used.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[error("entry {entry} of the in-flight log is damaged: {what}: found {found:#x}, expected {expected}")]
pub struct DamagedEntry {
    /// Its number.
    pub entry: u32,
    /// The word that is wrong.
    pub what: &'static str,
    /// The word found.
    pub found: u32,
    /// What it should be.
    pub expected: &'static str,
}

/// A request that was taken and not answered: entry, index in the ring, and what it asks.
pub type Unanswered<P> = (u32, u32, <P as Protocol>::Request);

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
        LogMemory::start(memory, entries, Self::FORMAT, taken, |entry| entry.store32(STATE, FREE)).map(Self)
    }

    /// The in-flight log that an earlier backend has left in `memory`.
    ///
    /// # Errors
    /// [`LogMismatch`] where `memory` does not hold an in-flight log of this protocol and size, of this version or an earlier one.
    pub fn open(memory: M, entries: u32) -> Result<Self, LogMismatch> {
        let (log, version) = LogMemory::open(memory, entries, Self::FORMAT)?;
        let log = Self(log);
        if version < VERSION {
            (0..entries).for_each(|entry| log.entry(entry).store32(CHECKSUM, log.checksum(entry)));
            log.0.upgrade(Self::FORMAT);
        }
        Ok(log)
    }

    /// Index of the next request to be taken.
    pub fn taken(&self) -> u32 {
        self.0.index()
    }

    /// Records that the request of `index` was taken from the ring, in a free entry.
    #[inline]
    pub fn take(&mut self, entry: u32, index: u32, request: &P::Request) {
        let record = self.entry(entry);
        record.store32(INDEX, index);
        P::write_request(self.request(entry), request);
        record.store32(CHECKSUM, self.checksum(entry));
        compiler_barrier();
        record.store32(STATE, TAKEN);
        compiler_barrier();
        self.0.set_index(index.wrapping_add(1));
    }

    /// Records that the entry's response is about to be written into the ring, as response `index`.
    #[inline]
    pub fn answer(&mut self, entry: u32, index: u32) {
        let record = self.entry(entry);
        record.store32(RESPONSE, index);
        compiler_barrier();
        record.store32(STATE, ANSWERED);
        compiler_barrier();
    }

    /// Frees the entry, whose response was published.
    #[inline]
    pub fn end(&mut self, entry: u32) {
        compiler_barrier();
        self.entry(entry).store32(STATE, FREE);
    }

    /// The requests that were taken and whose answers did not reach the frontend, which has seen all responses below index
    /// `published`, in the order in which they were taken. All other entries are free from here on.
    ///
    /// # Errors
    /// [`DamagedEntry`]; the log is as it was.
    pub fn unanswered(&mut self, published: u32) -> Result<Vec<Unanswered<P>>, DamagedEntry> {
        let mut unanswered = Vec::new();
        for entry in 0..self.0.entries() {
            if let Some(index) = self.index_of_unanswered(entry, published)? {
                unanswered.push((entry, index, P::read_request(self.request(entry))));
            }
        }
        let age = |index: u32| self.taken().wrapping_sub(index);
        unanswered.sort_unstable_by_key(|(_, index, _)| core::cmp::Reverse(age(*index)));
        if let Some(twice) = unanswered.windows(2).find(|pair| pair[0].1 == pair[1].1) {
            let (entry, found, _) = twice[1];
            let what = "index of its request";
            return Err(DamagedEntry { entry, what, found, expected: "an index of its own" });
        }
        (0..self.0.entries()).for_each(|entry| self.entry(entry).store32(STATE, FREE));
        unanswered.iter().for_each(|(entry, ..)| self.entry(*entry).store32(STATE, TAKEN));
        Ok(unanswered)
    }

    /// The index of an entry's request, if that was taken and its answer did not reach the frontend.
    fn index_of_unanswered(&self, entry: u32, published: u32) -> Result<Option<u32>, DamagedEntry> {
        let record = self.entry(entry);
        let index = record.load32(INDEX);
        let is_unanswered = match record.load32(STATE) {
            FREE => false,
            // A request that was not seen to be taken is taken again from the ring.
            TAKEN => index != self.taken(),
            ANSWERED => record.load32(RESPONSE).wrapping_sub(published) < self.0.entries(),
            found => {
                return Err(DamagedEntry { entry, what: "state", found, expected: "0 to 2" });
            }
        };
        if !is_unanswered {
            return Ok(None);
        }
        // A slow one may be far behind those taken since, but none is ahead.
        if self.taken().wrapping_sub(index).wrapping_sub(1) > u32::MAX / 2 {
            let expected = "one that was taken";
            return Err(DamagedEntry { entry, what: "index of its request", found: index, expected });
        }
        let found = record.load32(CHECKSUM);
        match found == self.checksum(entry) {
            true => Ok(Some(index)),
            false => Err(DamagedEntry { entry, what: "checksum", found, expected: "its request's" }),
        }
    }

    /// A checksum of an entry's request and of its index: against damage, not against forgery.
    #[inline]
    fn checksum(&self, entry: u32) -> u32 {
        let request = self.0.entry(entry, ENTRY, Self::STRIDE - ENTRY);
        let mix = |sum: u64, word: u64| (sum ^ word).wrapping_mul(0x9e37_79b9_7f4a_7c15).rotate_left(29);
        let index = u64::from(self.entry(entry).load32(INDEX));
        let sum = (0..request.len()).step_by(8).fold(index, |sum, at| mix(sum, request.load64(at)));
        (sum ^ (sum >> 32)) as u32
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
