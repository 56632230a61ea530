//! The frontend's side of a ring as a value: operations in, completions out, over one ring after another.
//!
//! Unanswered requests are kept, and sent again when the backend reconnects with a new ring.

use alloc::collections::VecDeque;
use arrayvec::ArrayVec;
use ring_abi::GrantRef;
use ring_abi::blkif::{
    Discard, Indirect, Io, MAX_INDIRECT_PAGES, MAX_SEGMENTS, OP_DISCARD, OP_FLUSH_DISKCACHE, OP_INDIRECT,
    OP_READ, OP_WRITE, OP_WRITE_BARRIER, Request, Response, Segment, Status,
};
use ring_abi::ring::{BadMemory, Front, Notify, Protocol};
use ring_abi::shm::Memory;

use crate::table::Table;

/// What the backend is to do with the disk, as the ring says it (blkif.h:477).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum Operation {
    /// Disk to memory.
    Read = OP_READ,
    /// Memory to disk.
    Write = OP_WRITE,
    /// Memory to disk, after all earlier writes are durable, and durable before any later one starts.
    Barrier = OP_WRITE_BARRIER,
    /// Completed writes become durable.
    Flush = OP_FLUSH_DISKCACHE,
    /// Sectors are no longer in use: what they read as is undefined until they are written. See [`Queue::submit_discard`].
    Discard = OP_DISCARD,
}

impl Operation {
    /// Fills in a request for this operation over an earlier one: the only place that knows what each looks like.
    #[inline]
    fn fill(self, request: &mut Request, id: u64, sector: u64, push: impl FnOnce(&mut Segments)) {
        match self {
            Operation::Read | Operation::Write | Operation::Barrier | Operation::Flush => {
                if !matches!(request, Request::Io(_)) {
                    *request = Request::default();
                }
                let Request::Io(io) = request else { return };
                io.segments.clear();
                push(&mut io.segments);
                io.id = id;
                io.sector_number = sector;
                io.operation = self as u8;
                io.nr_segments = io.segments.len() as u8;
            }
            // One of no sectors, which backends refuse: the range is given by `Queue::submit_discard`.
            Operation::Discard => *request = discard(id, sector, 0),
        }
    }
}

/// The backend broke the protocol, for which the device is closed.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum Fault {
    /// The producer index is impossible.
    #[error(transparent)]
    Ring(#[from] ring_abi::ring::Fault),
    /// A response to no request in flight, a second response to one, or one to a request that this ring has not carried.
    #[error("the backend answered request {id:#x}, which is not in flight")]
    UnknownId {
        /// The id found.
        id: u64,
    },
    /// A response with another operation than the request's.
    #[error("the backend answered request {id:#x} as operation {found}, expected {expected}")]
    WrongOperation {
        /// The request.
        id: u64,
        /// The operation in the response.
        found: u8,
        /// The request's operation.
        expected: u8,
    },
}

/// Responses that are fetched from the backend's processor at the same time.
const PREFETCH: usize = 16;

/// The segments of one request.
pub type Segments = ArrayVec<Segment, MAX_SEGMENTS>;

/// One device's requests in flight, and the ring if there is one. `T` is the item that belongs to a request, such as
/// its pages: it is given back exactly once.
///
/// ```
/// # use blkfront::queue::{Fault, Operation, Queue};
/// # use ring_abi::{blkif::{Segment, X86_64}, shm::Memory};
/// /// Reads one page at sector 8.
/// fn read<M: Memory>(queue: &mut Queue<X86_64, M, u32>, page: Segment) -> Result<(), Fault> {
///     if queue.submit(Operation::Read, 8, &[page], 42).is_err() {
///         return Ok(()); // The ring is full.
///     }
///     if queue.commit().wanted() {
///         // Notify the backend's event channel.
///     }
///     queue.poll(|item, status| {
///         // Item 42 comes back with the backend's status.
///     })?;
///     Ok(())
/// }
/// ```
#[derive(Debug)]
pub struct Queue<P, M, T> {
    ring: Option<Front<P, M>>,
    table: Table<T>,
    /// Ids of requests not yet pushed: submitted without a ring, or to be sent again over a new one. They ascend, and
    /// are above those of all requests that were pushed to this ring.
    unsent: VecDeque<u64>,
    /// Requests were pushed since the last commit.
    pushed: bool,
    /// Barriers in flight.
    barriers: usize,
}

impl<P: Protocol<Request = Request, Response = Response>, M: Memory, T> Queue<P, M, T> {
    /// A queue without a ring, for up to `capacity` requests.
    pub fn new(capacity: u32) -> Self {
        Self { ring: None, table: Table::new(capacity), unsent: VecDeque::new(), pushed: false, barriers: 0 }
    }

    /// Initialises a new ring in `memory` and pushes all unanswered requests again, in their order. To be committed
    /// once the backend is connected.
    ///
    /// # Errors
    /// [`BadMemory`] if the memory cannot be a ring.
    pub fn connect(&mut self, memory: M) -> Result<(), BadMemory> {
        let ring = Front::init(memory)?;
        self.table.grow(ring.size());
        self.ring = Some(ring);
        self.unsent = self.table.in_order().into();
        self.send_unsent();
        Ok(())
    }

    /// Gives the ring's memory back, the backend being gone. Requests in flight stay in flight.
    pub fn disconnect(&mut self) -> Option<M> {
        self.ring.take().map(Front::into_memory)
    }

    /// Whether there is a ring.
    pub fn is_connected(&self) -> bool {
        self.ring.is_some()
    }

    /// Requests in flight.
    #[inline]
    pub fn in_flight(&self) -> usize {
        self.table.len()
    }

    /// Requests that can be in flight at once.
    pub fn size(&self) -> u32 {
        self.ring.as_ref().map_or(0, Front::size)
    }

    /// Submits a read or write whose segments lie in pages of their own, which `describe` names: how many segments there are, and the
    /// grants of their pages, as many as [`indirect::page_bytes`](ring_abi::blkif::indirect::page_bytes) has.
    ///
    /// # Errors
    /// Gives the item back if the ring is full.
    pub fn submit_indirect(
        &mut self,
        operation: Operation,
        sector_number: u64,
        item: T,
        describe: impl FnOnce(&T) -> (u16, [GrantRef; MAX_INDIRECT_PAGES]),
    ) -> Result<(), T> {
        self.insert(item, |item, id, request| {
            let (nr_segments, indirect_grefs) = describe(item);
            let indirect_op = operation as u8;
            *request = Request::Indirect(Indirect {
                id,
                indirect_op,
                nr_segments,
                sector_number,
                handle: 0,
                indirect_grefs,
            });
        })
    }

    /// Submits a discard of so many sectors, in units of 512 bytes.
    ///
    /// # Errors
    /// Gives the item back if the ring is full.
    pub fn submit_discard(&mut self, sector: u64, sectors: u64, item: T) -> Result<(), T> {
        self.insert(item, |_, id, request| *request = discard(id, sector, sectors))
    }

    /// Whether a barrier is in flight.
    #[inline]
    pub fn has_barrier(&self) -> bool {
        self.barriers > 0
    }

    /// Submits a request; `sector` is in units of 512 bytes. Without a ring it is kept, and sent once there is one.
    ///
    /// # Errors
    /// Gives the item back if the ring is full.
    ///
    /// # Panics
    /// If there are more than [`MAX_SEGMENTS`] segments.
    #[inline]
    pub fn submit(
        &mut self,
        operation: Operation,
        sector: u64,
        segments: &[Segment],
        item: T,
    ) -> Result<(), T> {
        self.submit_with(operation, sector, item, |_, into| into.extend(segments.iter().copied()))
    }

    /// Submits a request as [`Queue::submit`] does, whose segments `push` takes from the item.
    ///
    /// # Errors
    /// Gives the item back if the ring is full.
    #[inline]
    pub fn submit_with(
        &mut self,
        operation: Operation,
        sector: u64,
        item: T,
        push: impl FnOnce(&T, &mut Segments),
    ) -> Result<(), T> {
        self.insert(item, |item, id, request| {
            operation.fill(request, id, sector, |segments| push(item, segments));
        })?;
        self.barriers += usize::from(operation == Operation::Barrier);
        Ok(())
    }

    /// Submits a request that another queue has given up, with another id.
    ///
    /// # Errors
    /// Gives the item back if the ring is full.
    pub(crate) fn submit_again(&mut self, request: &Request, item: T) -> Result<(), T> {
        self.insert(item, |_, id, into| {
            into.clone_from(request);
            set_id(into, id);
        })?;
        self.barriers += usize::from(request.operation() == OP_WRITE_BARRIER);
        Ok(())
    }

    #[inline(always)]
    fn insert(&mut self, item: T, fill: impl FnOnce(&T, u64, &mut Request)) -> Result<(), T> {
        let can_send = match &self.ring {
            Some(ring) if ring.free() == 0 => return Err(item),
            Some(_) => self.unsent.is_empty(),
            None => false,
        };
        let request = self.table.insert(item, fill)?;
        match &mut self.ring {
            Some(ring) if can_send => self.pushed |= ring.push(request),
            _ => self.unsent.push_back(request.id()),
        }
        Ok(())
    }

    #[cold]
    fn send_unsent(&mut self) {
        let Some(ring) = &mut self.ring else { return };
        while let Some(request) = self.unsent.front().and_then(|id| self.table.get(*id)) {
            if !ring.push(request) {
                return;
            }
            self.pushed = true;
            self.unsent.pop_front();
        }
    }

    /// Whether [`Queue::commit`] would publish requests.
    #[inline]
    pub fn has_uncommitted(&self) -> bool {
        let can_push = |ring: &Front<P, M>| !self.unsent.is_empty() && ring.free() > 0;
        self.ring.as_ref().is_some_and(|ring| self.pushed || can_push(ring))
    }

    /// Publishes the requests pushed; returns whether the backend is to be notified of them.
    #[inline]
    pub fn commit(&mut self) -> Notify {
        if !self.unsent.is_empty() {
            self.send_unsent();
        }
        match &mut self.ring {
            Some(ring) if core::mem::take(&mut self.pushed) => ring.commit(),
            _ => Notify::No,
        }
    }

    /// Takes the responses that are there, and gives each request's item and the status of its response to `completed`;
    /// returns how many.
    ///
    /// # Errors
    /// [`Fault`] at the first impossible response, of which no item is given: close this device.
    #[inline]
    pub fn poll(&mut self, mut completed: impl FnMut(T, Status)) -> Result<usize, Fault> {
        let Some(ring) = &mut self.ring else { return Ok(0) };
        if !ring.refresh()? {
            return Ok(0);
        }
        let count = ring.seen() as usize;
        for number in 0..count {
            if number % PREFETCH == 0 {
                ring.prefetch(PREFETCH as u32);
            }
            let Some(Response { id, operation: found, status }) = ring.pop()? else { break };
            let is_unsent = self.unsent.front().is_some_and(|first| id >= *first);
            let entry = self.table.entry(id).filter(|_| !is_unsent).ok_or(Fault::UnknownId { id })?;
            let expected = entry.request.operation();
            // An indirect request is answered as the operation inside, by Linux's backend and ours; by blkif.h as what it is.
            if found != expected && !(found == OP_INDIRECT && is_indirect(entry.request)) {
                return Err(Fault::WrongOperation { id, found, expected });
            }
            if let Some(item) = entry.remove() {
                self.barriers -= usize::from(expected == OP_WRITE_BARRIER);
                completed(item, status);
            }
        }
        Ok(count)
    }

    /// Sets the ring's event index, so that the next completion is notified; `true` if there is one already.
    ///
    /// # Errors
    /// [`Fault::Ring`]: close this device.
    pub fn arm(&mut self) -> Result<bool, Fault> {
        Ok(self.ring.as_mut().map_or(Ok(false), Front::arm)?)
    }

    /// Drops the ring and gives back the items of all requests in flight.
    pub fn abandon(&mut self) -> alloc::vec::Vec<T> {
        self.unsent.clear();
        self.ring = None;
        self.barriers = 0;
        self.table.drain().into_iter().map(|(_, item)| item).collect()
    }

    /// Gives up the requests in flight that have more than so many segments, and gives back their items. To be called without a
    /// ring: the next backend does not support them.
    pub(crate) fn remove_larger(&mut self, segments: u16) -> alloc::vec::Vec<T> {
        self.table.remove_if(|request| is_larger(request, segments))
    }

    /// The requests in flight, in the order in which they were submitted, with their items.
    pub(crate) fn into_requests(mut self) -> alloc::vec::Vec<(Request, T)> {
        self.table.drain()
    }
}

#[cold]
fn discard(id: u64, sector_number: u64, nr_sectors: u64) -> Request {
    Request::Discard(Discard { flag: 0, handle: 0, id, sector_number, nr_sectors })
}

#[cold]
fn is_indirect(request: &Request) -> bool {
    matches!(request, Request::Indirect(_))
}

/// Whether a request has more than so many segments in pages of their own.
pub(crate) fn is_larger(request: &Request, segments: u16) -> bool {
    matches!(request, Request::Indirect(one) if one.nr_segments > segments)
}

fn set_id(request: &mut Request, to: u64) {
    match request {
        Request::Io(Io { id, .. })
        | Request::Discard(Discard { id, .. })
        | Request::Indirect(Indirect { id, .. })
        | Request::Unknown { id, .. } => *id = to,
    }
}

#[cfg(test)]
mod tests;
