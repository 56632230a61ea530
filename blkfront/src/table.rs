//! Requests in flight, in slots found by request id, each with the item that belongs to it.
//!
//! A request's id is its slot's number and, above that, the number of earlier requests: a response that repeats an
//! earlier id is detected although the slot is in use again.

use alloc::vec::Vec;
use ring_abi::blkif::Request;
use slab::Slab;

/// One request in flight.
#[derive(Debug)]
struct Entry<T> {
    request: Request,
    /// Number of earlier requests.
    sequence: u64,
    item: T,
}

/// Slots for requests.
#[derive(Debug)]
pub struct Table<T> {
    entries: Slab<Entry<T>>,
    capacity: usize,
    inserted: u64,
}

impl<T> Table<T> {
    /// A table for up to `capacity` requests.
    pub fn new(capacity: u32) -> Self {
        let capacity = capacity as usize;
        Self { entries: Slab::with_capacity(capacity), capacity, inserted: 0 }
    }

    /// Makes room for up to `capacity` requests in all; never shrinks.
    pub fn grow(&mut self, capacity: u32) {
        self.capacity = self.capacity.max(capacity as usize);
        self.entries.reserve(self.capacity - self.entries.len());
    }

    /// Requests in flight.
    #[inline]
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Whether no request is in flight.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// Inserts a request, which `make` builds from its id.
    ///
    /// # Errors
    /// Gives the item back if all slots are in use.
    #[inline]
    pub fn insert(&mut self, item: T, make: impl FnOnce(u64) -> Request) -> Result<&Request, T> {
        if self.entries.len() >= self.capacity {
            return Err(item);
        }
        let slot = self.entries.vacant_entry();
        let sequence = self.inserted;
        self.inserted += 1;
        let request = make(sequence << 32 | slot.key() as u64);
        Ok(&slot.insert(Entry { request, sequence, item }).request)
    }

    /// The request with this id, if it is in flight.
    #[inline]
    pub fn get(&self, id: u64) -> Option<&Request> {
        let entry = self.entries.get(id as u32 as usize)?;
        (entry.sequence as u32 == (id >> 32) as u32).then_some(&entry.request)
    }

    /// Removes the request with this id; `None` if it is not in flight.
    #[inline]
    pub fn remove(&mut self, id: u64) -> Option<T> {
        self.get(id)?;
        Some(self.entries.try_remove(id as u32 as usize)?.item)
    }

    /// The ids of all requests in flight, in the order in which they were inserted.
    pub fn in_order(&self) -> Vec<u64> {
        let mut all: Vec<_> =
            self.entries.iter().map(|(_, entry)| (entry.sequence, entry.request.id())).collect();
        all.sort_unstable();
        all.into_iter().map(|(_, id)| id).collect()
    }

    /// Removes all requests, in the order in which they were inserted.
    pub fn drain(&mut self) -> Vec<T> {
        self.in_order().into_iter().filter_map(|id| self.remove(id)).collect()
    }
}
