//! The frontend's protocol as a value: operations in, completions out, over one ring after another.
//!
//! What was not answered is kept, so that it can be asked again when the backend comes back with a fresh ring.

use alloc::collections::VecDeque;
use arrayvec::ArrayVec;
use ring_abi::blkif::{
    Io, MAX_SEGMENTS, OP_FLUSH_DISKCACHE, OP_READ, OP_WRITE, OP_WRITE_BARRIER, Request, Response, Segment,
    Status,
};
use ring_abi::ring::{BadMemory, Front, Notify, Protocol};
use ring_abi::shm::Memory;

use crate::table::Table;

/// What is asked of the disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Op {
    /// Disk to memory.
    Read,
    /// Memory to disk.
    Write,
    /// Memory to disk, after all before it is durable, and durable before all after it.
    Barrier,
    /// Writes already completed become durable.
    Flush,
}

impl Op {
    fn code(self) -> u8 {
        match self {
            Op::Read => OP_READ,
            Op::Write => OP_WRITE,
            Op::Barrier => OP_WRITE_BARRIER,
            Op::Flush => OP_FLUSH_DISKCACHE,
        }
    }
}

/// The backend broke the protocol: this device is closed.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum Fault {
    /// Its producer index is impossible.
    #[error(transparent)]
    Ring(#[from] ring_abi::ring::Fault),
    /// It answered what was not asked, or answered twice.
    #[error("the backend answered request {id:#x}, which is not in flight")]
    UnknownId {
        /// The id found.
        id: u64,
    },
    /// It answered something else than what was asked.
    #[error("the backend answered request {id:#x} as operation {found}, expected {expected}")]
    WrongOperation {
        /// The request.
        id: u64,
        /// The operation found in the answer.
        found: u8,
        /// The operation asked.
        expected: u8,
    },
}

/// Segments of one request.
pub type Segments = ArrayVec<Segment, MAX_SEGMENTS>;

/// One device's requests, and the ring if there is one. `T` is whatever belongs to a request, its pages above all:
/// it is given back exactly once.
#[derive(Debug)]
pub struct Queue<P, M, T> {
    ring: Option<Front<P, M>>,
    table: Table<T>,
    /// Asked before the ring was there, to be pushed when it has room.
    unsent: VecDeque<u64>,
    /// Requests were pushed since the last commit.
    pushed: bool,
}

impl<P: Protocol<Request = Request, Response = Response>, M: Memory, T> Queue<P, M, T> {
    /// A queue without a ring, with room for `requests`.
    pub fn new(requests: u32) -> Self {
        Self { ring: None, table: Table::new(requests), unsent: VecDeque::new(), pushed: false }
    }

    /// Lays a fresh ring in `memory` and asks again, in their order, for all that was not answered. To be committed
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

    /// Takes the ring away, the backend being gone. Requests in flight stay in flight.
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

    /// Asks for something. `sector` is in units of 512 bytes. Without a ring it is kept and asked later.
    ///
    /// # Errors
    /// Gives the item back when too much is in flight.
    #[inline]
    pub fn submit(&mut self, op: Op, sector: u64, segments: Segments, item: T) -> Result<(), T> {
        if self.ring.as_ref().is_some_and(|ring| ring.free() == 0) {
            return Err(item);
        }
        let request = self.table.insert(item, |id| {
            let (operation, nr_segments) = (op.code(), segments.len() as u8);
            Request::Io(Io { operation, handle: 0, id, sector_number: sector, nr_segments, segments })
        })?;
        let sent = match &mut self.ring {
            Some(ring) => self.unsent.is_empty() && ring.push(request),
            None => false,
        };
        if sent {
            self.pushed = true;
        } else {
            self.unsent.push_back(request.id());
        }
        Ok(())
    }

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

    /// Publishes what was asked; says whether the backend wants to be woken for it.
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

    /// The next completion.
    ///
    /// # Errors
    /// [`Fault`]: close this device.
    #[inline]
    pub fn poll(&mut self) -> Result<Option<(T, Status)>, Fault> {
        let Some(ring) = &mut self.ring else { return Ok(None) };
        let Some(response) = ring.pop()? else { return Ok(None) };
        let Response { id, operation: found, status } = response;
        let expected = self.table.get(id).ok_or(Fault::UnknownId { id })?.operation();
        if found != expected {
            return Err(Fault::WrongOperation { id, found, expected });
        }
        Ok(self.table.remove(id).map(|item| (item, status)))
    }

    /// Asks to be woken by the next completion; `true` if there is one already.
    ///
    /// # Errors
    /// As [`Queue::poll`].
    pub fn arm(&mut self) -> Result<bool, Fault> {
        Ok(self.ring.as_mut().map_or(Ok(false), Front::arm)?)
    }

    /// Gives up on all requests in flight, and on the ring.
    pub fn abandon(&mut self) -> alloc::vec::Vec<T> {
        self.unsent.clear();
        self.ring = None;
        self.table.drain()
    }
}

#[cfg(test)]
mod tests;
