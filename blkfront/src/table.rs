//! Requests in flight: what was asked, in which order, and what belongs to it.
//!
//! A request's id is its place and how often the place was used: an answer given twice is known to be wrong.

use alloc::vec::Vec;
use ring_abi::blkif::Request;

/// One request in flight.
#[derive(Debug)]
struct Entry<T> {
    request: Request,
    /// Earlier requests have lower numbers.
    order: u64,
    item: T,
}

#[derive(Debug)]
struct Place<T> {
    /// How often the place was used.
    turn: u32,
    entry: Option<Entry<T>>,
}

/// Places for requests, found by id.
#[derive(Debug)]
pub struct Table<T> {
    places: Vec<Place<T>>,
    free: Vec<u32>,
    inserted: u64,
}

impl<T> Table<T> {
    /// A table for so many requests.
    pub fn new(places: u32) -> Self {
        let mut table = Self { places: Vec::new(), free: Vec::new(), inserted: 0 };
        table.grow(places);
        table
    }

    /// Makes room for so many requests in all; never takes any away.
    pub fn grow(&mut self, places: u32) {
        let old = self.places.len() as u32;
        self.free.extend((old..places).rev());
        self.places.resize_with((places.max(old)) as usize, || Place { turn: 0, entry: None });
    }

    /// Requests in flight.
    pub fn len(&self) -> usize {
        self.places.len() - self.free.len()
    }

    /// Whether none is.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Takes a place. `make` builds the request that carries this id.
    ///
    /// # Errors
    /// Gives the item back when all places are taken.
    #[inline]
    pub fn insert(&mut self, item: T, make: impl FnOnce(u64) -> Request) -> Result<&Request, T> {
        let Some(at) = self.free.pop() else { return Err(item) };
        let place = &mut self.places[at as usize];
        place.turn = place.turn.wrapping_add(1);
        let request = make(u64::from(place.turn) << 32 | u64::from(at));
        let entry = Entry { request, order: self.inserted, item };
        self.inserted += 1;
        Ok(&place.entry.insert(entry).request)
    }

    /// The request with this id, if it is in flight.
    #[inline]
    pub fn get(&self, id: u64) -> Option<&Request> {
        let place = self.places.get(id as u32 as usize)?;
        place.entry.as_ref().map(|e| &e.request).filter(|_| u64::from(place.turn) == id >> 32)
    }

    /// Ends the request with this id; `None` if there is none.
    #[inline]
    pub fn remove(&mut self, id: u64) -> Option<T> {
        self.get(id)?;
        let entry = self.places[id as u32 as usize].entry.take()?;
        self.free.push(id as u32);
        Some(entry.item)
    }

    /// The ids of all requests in flight, in the order in which they were asked.
    pub fn in_order(&self) -> Vec<u64> {
        let mut all: Vec<(u64, u64)> =
            self.places.iter().filter_map(|p| p.entry.as_ref()).map(|e| (e.order, e.request.id())).collect();
        all.sort_unstable();
        all.into_iter().map(|(_, id)| id).collect()
    }

    /// Ends all requests.
    pub fn drain(&mut self) -> Vec<T> {
        self.in_order().into_iter().filter_map(|id| self.remove(id)).collect()
    }
}
