//! Requests in flight, each in a slot that is filled in place and named by its index, with the item that belongs to it.
//!
//! A request's id is its slot's index and, above that, the number of earlier requests: a response that repeats an
//! earlier id is detected although the slot is in use again.

use alloc::vec::Vec;
use ring_abi::blkif::{Io, Request};

/// Bits of an id that are the slot's index. Those above it count requests, and wrap after months at millions a second.
const INDEX_BITS: u32 = 16;

/// One request in flight.
#[derive(Debug)]
struct Slot<T> {
    /// In a free slot what an earlier request left: its memory is filled again.
    request: Request,
    /// `None` in a free slot.
    item: Option<T>,
}

/// Slots for requests.
#[derive(Debug)]
pub(crate) struct Table<T> {
    slots: Vec<Slot<T>>,
    /// The free slots' indexes; the one that was in use last is used next, as its memory is in the cache.
    free: Vec<u16>,
    /// Number of requests inserted so far.
    inserted: u64,
}

impl<T> Table<T> {
    /// A table for up to `capacity` requests, at most 2^16.
    pub(crate) fn new(capacity: u32) -> Self {
        let mut table = Self { slots: Vec::new(), free: Vec::new(), inserted: 0 };
        table.grow(capacity);
        table
    }

    /// Makes room for up to `capacity` requests in all; never shrinks.
    pub(crate) fn grow(&mut self, capacity: u32) {
        let first = self.slots.len();
        let capacity = (capacity as usize).clamp(first, 1 << INDEX_BITS);
        self.slots.resize_with(capacity, || Slot { request: Request::Io(Io::EMPTY), item: None });
        // So that a request that completes allocates nothing.
        self.free.reserve(capacity - self.free.len());
        self.free.splice(0..0, (first..capacity).rev().map(|index| index as u16));
    }

    /// Requests in flight.
    #[inline]
    pub(crate) fn len(&self) -> usize {
        self.slots.len() - self.free.len()
    }

    /// Inserts an item and its request, which `fill` fills in over an earlier one: it is given the request's id.
    ///
    /// # Errors
    /// Gives the item back if all slots are in use.
    #[inline]
    pub(crate) fn insert(
        &mut self,
        item: T,
        fill: impl FnOnce(&T, u64, &mut Request),
    ) -> Result<&Request, T> {
        let Some(index) = self.free.pop() else { return Err(item) };
        let slot = &mut self.slots[usize::from(index)];
        let id = self.inserted << INDEX_BITS | u64::from(index);
        self.inserted += 1;
        fill(slot.item.insert(item), id, &mut slot.request);
        Ok(&slot.request)
    }

    /// The request with this id, if it is in flight.
    #[inline]
    pub(crate) fn get(&self, id: u64) -> Option<&Request> {
        let slot = self.slots.get(usize::from(id as u16))?;
        (slot.item.is_some() && slot.request.id() == id).then_some(&slot.request)
    }

    /// The request with this id, to be removed, if it is in flight.
    #[inline]
    pub(crate) fn entry(&mut self, id: u64) -> Option<Entry<'_, T>> {
        let slot = self.slots.get_mut(usize::from(id as u16))?;
        let Slot { request, item } = slot;
        if item.is_none() || request.id() != id {
            return None;
        }
        Some(Entry { request, item, free: &mut self.free })
    }

    /// The ids of all requests in flight, in the order in which they were inserted.
    pub(crate) fn in_order(&self) -> Vec<u64> {
        let in_flight = self.slots.iter().filter(|slot| slot.item.is_some());
        let mut ids: Vec<u64> = in_flight.map(|slot| slot.request.id()).collect();
        ids.sort_unstable();
        ids
    }

    /// Removes those requests that `remove` says, and returns their items.
    pub(crate) fn remove_if(&mut self, remove: impl Fn(&Request) -> bool) -> Vec<T> {
        let mut ids = self.in_order();
        ids.retain(|id| self.get(*id).is_some_and(&remove));
        ids.into_iter().filter_map(|id| self.entry(id)?.remove()).collect()
    }

    /// Removes all requests, in the order in which they were inserted.
    pub(crate) fn drain(&mut self) -> Vec<(Request, T)> {
        let ids = self.in_order();
        let remove = |id| {
            let entry = self.entry(id)?;
            Some((entry.request.clone(), entry.remove()?))
        };
        ids.into_iter().filter_map(remove).collect()
    }
}

/// A request in flight.
pub(crate) struct Entry<'a, T> {
    pub(crate) request: &'a Request,
    item: &'a mut Option<T>,
    free: &'a mut Vec<u16>,
}

impl<T> Entry<'_, T> {
    /// Removes the request and returns its item.
    #[inline]
    pub(crate) fn remove(self) -> Option<T> {
        self.free.push(self.request.id() as u16);
        self.item.take()
    }
}
