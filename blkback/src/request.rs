//! A request in flight: decoded once into a slot of a table as large as the ring, and named by the slot's number from
//! then on.

use std::ops::{Index, IndexMut};
use std::time::Instant;

use ring_abi::blkif::{Request, SECTOR, Segment};

/// The name of a request in flight: the number of its slot in the table, below the ring's size.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Tag(pub u32);

/// What is to be done with the disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Operation {
    /// Disk to memory.
    Read,
    /// Memory to disk.
    Write,
    /// Completed writes become durable.
    Flush,
    /// Sectors are no longer in use: no memory belongs to it.
    Discard,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Free,
    InFlight,
    /// The response is in the ring, but may not be published yet.
    Answered,
}

/// A request in flight.
#[derive(Debug)]
pub struct PendingRequest {
    /// As the frontend wrote it.
    request: Request,
    /// The fetched segments of an indirect request; none, without memory, of any other.
    fetched: Vec<Segment>,
    state: State,
    operation: Operation,
    /// Length of the segments in bytes, when they are read or written.
    bytes: u32,
    taken_at: Option<Instant>,
}

impl PendingRequest {
    fn free() -> PendingRequest {
        PendingRequest {
            request: Request::default(),
            fetched: Vec::new(),
            state: State::Free,
            operation: Operation::Flush,
            bytes: 0,
            taken_at: None,
        }
    }

    /// The request as the frontend wrote it.
    #[inline]
    pub fn request(&self) -> &Request {
        &self.request
    }

    /// What the request, or the present step of a barrier, asks of the disk.
    #[inline]
    pub fn operation(&self) -> Operation {
        self.operation
    }

    /// First sector, in units of 512 bytes; checked. 0 for a flush.
    #[inline]
    pub fn sector(&self) -> u64 {
        match &self.request {
            // What has data to read or write: a barrier does in its step that writes.
            _ if self.operation == Operation::Flush => 0,
            Request::Io(io) => io.sector_number,
            Request::Indirect(indirect) => indirect.sector_number,
            Request::Discard(discard) => discard.sector_number,
            _ => 0,
        }
    }

    /// What is read or written of the frontend's pages; checked. None for a flush or discard, and for an indirect request before it is
    /// fetched.
    #[inline]
    pub fn segments(&self) -> &[Segment] {
        match &self.request {
            _ if self.operation == Operation::Flush => &[],
            Request::Io(io) => &io.segments,
            _ => &self.fetched,
        }
    }

    /// Length of all segments, or of what is discarded, in bytes.
    #[inline]
    pub fn bytes(&self) -> usize {
        match &self.request {
            _ if self.operation == Operation::Flush => 0,
            Request::Discard(discard) => (discard.nr_sectors as usize).saturating_mul(SECTOR),
            _ => self.bytes as usize,
        }
    }

    /// When the request was taken from the ring, if its taker has said so.
    #[inline]
    pub fn taken_at(&self) -> Option<Instant> {
        self.taken_at
    }

    /// Sets what the request asks of the disk, and the length of its segments.
    #[inline]
    pub(crate) fn admit(&mut self, operation: Operation, bytes: u32) {
        self.operation = operation;
        self.bytes = bytes;
    }

    /// Sets the next step of a barrier.
    pub(crate) fn set_step(&mut self, operation: Operation) {
        self.operation = operation;
    }

    #[inline]
    pub(crate) fn set_taken_at(&mut self, now: Instant) {
        self.taken_at = Some(now);
    }

    /// Records that the request is answered; `false` if it is not in flight.
    #[inline]
    pub(crate) fn answer(&mut self) -> bool {
        let in_flight = self.state == State::InFlight;
        if in_flight {
            self.state = State::Answered;
        }
        in_flight
    }
}

/// The requests in flight of one ring, each in a slot of its own.
#[derive(Debug)]
pub struct RequestTable {
    slots: Box<[PendingRequest]>,
    /// The slot freed last is used first: it is in the processor's cache.
    free: Vec<Tag>,
    /// Memory of fetched segments that no request has now.
    spare: Vec<Vec<Segment>>,
}

impl RequestTable {
    /// A table of `size` free slots.
    pub(crate) fn new(size: u32) -> RequestTable {
        let slots = (0..size).map(|_| PendingRequest::free()).collect();
        RequestTable { slots, free: (0..size).rev().map(Tag).collect(), spare: Vec::new() }
    }

    /// A table of `size` slots with these requests in flight.
    pub(crate) fn resume(size: u32, requests: impl IntoIterator<Item = (Tag, Request)>) -> RequestTable {
        let mut table = RequestTable::new(size);
        for (tag, request) in requests {
            table[tag].request = request;
            table[tag].state = State::InFlight;
        }
        let RequestTable { slots, free, .. } = &mut table;
        free.retain(|tag| slots[tag.0 as usize].state == State::Free);
        table
    }

    /// Slots in use.
    #[inline]
    pub(crate) fn len(&self) -> usize {
        self.slots.len() - self.free.len()
    }

    /// Decodes a request into a free slot, by `decode`, which returns whether there was one. `None` if there was none,
    /// or no slot is free.
    #[inline(always)]
    pub(crate) fn take<E>(
        &mut self,
        decode: impl FnOnce(&mut Request) -> Result<bool, E>,
    ) -> Result<Option<Tag>, E> {
        let Some(tag) = self.free.last().copied() else { return Ok(None) };
        let slot = &mut self.slots[tag.0 as usize];
        if !decode(&mut slot.request)? {
            return Ok(None);
        }
        slot.state = State::InFlight;
        slot.taken_at = None;
        self.free.pop();
        Ok(Some(tag))
    }

    /// Frees the slot of a request that is answered.
    #[inline]
    pub(crate) fn free(&mut self, tag: Tag) {
        let slot = &mut self[tag];
        slot.state = State::Free;
        if slot.fetched.capacity() > 0 {
            self.take_fetched(tag);
        }
        self.free.push(tag);
    }

    #[cold]
    fn take_fetched(&mut self, tag: Tag) {
        let mut fetched = std::mem::take(&mut self[tag].fetched);
        fetched.clear();
        self.spare.push(fetched);
    }

    /// Gives an indirect request its segments, in memory that is used again.
    pub(crate) fn set_fetched(&mut self, tag: Tag, segments: impl ExactSizeIterator<Item = Segment>) {
        let mut fetched = self.spare.pop().unwrap_or_default();
        fetched.reserve_exact(segments.len());
        fetched.extend(segments);
        self[tag].fetched = fetched;
    }

    /// Gives back memory of segments that no request has.
    pub(crate) fn give_back_spare(&mut self) {
        self.spare = Vec::new();
    }
}

impl Index<Tag> for RequestTable {
    type Output = PendingRequest;

    #[inline]
    fn index(&self, tag: Tag) -> &PendingRequest {
        &self.slots[tag.0 as usize]
    }
}

impl IndexMut<Tag> for RequestTable {
    #[inline]
    fn index_mut(&mut self, tag: Tag) -> &mut PendingRequest {
        &mut self.slots[tag.0 as usize]
    }
}
