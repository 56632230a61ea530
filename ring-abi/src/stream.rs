//! Streams of bytes over a shared page, as the console and the store have them: two rings of bytes, one each way,
//! each with a consumer and a producer index that run freely and are masked when used.
//!
//! Each side believes its own index only as it keeps it privately, and the peer's only after a check. There are no
//! event indexes: the end that has moved bytes notifies its peer.
#![allow(unsafe_code)] // A page is made one slot.

use crate::PAGE_SIZE;
use crate::shm::{Memory, Slot};
use crate::sync::{Ordering, fence};

/// Where one ring of bytes is in its page; offsets in bytes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Layout {
    /// First byte of the ring.
    pub ring: usize,
    /// Bytes of the ring, a power of two.
    pub size: u32,
    /// The consumer's index.
    pub cons: usize,
    /// The producer's index.
    pub prod: usize,
}

/// Both rings of a page.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Interface {
    /// What errors call it.
    pub name: &'static str,
    /// From the domain to the daemon.
    pub to_back: Layout,
    /// From the daemon to the domain.
    pub to_front: Layout,
}

/// Why a stream cannot go on, or cannot start.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum Fault {
    /// The peer's index is further from ours than the ring is long.
    #[error("{stream}: producer {prod} and consumer {cons} are more than {size} bytes apart")]
    Index {
        /// [`Interface::name`].
        stream: &'static str,
        /// The producer's index.
        prod: u32,
        /// The consumer's index.
        cons: u32,
        /// Bytes of the ring.
        size: u32,
    },
    /// The memory is not one page.
    #[error("{stream}: {len} bytes of memory, expected one page")]
    Memory {
        /// [`Interface::name`].
        stream: &'static str,
        /// Bytes found.
        len: usize,
    },
}

/// One end of the two rings of a page.
#[derive(Debug)]
pub struct Stream<M> {
    memory: M,
    name: &'static str,
    input: Layout,
    output: Layout,
    cons: u32,
    prod: u32,
}

impl<M: Memory> Stream<M> {
    /// The domain's end; continues from the page's indexes.
    ///
    /// # Errors
    /// [`Fault::Memory`] if the memory is not one page.
    pub fn front(memory: M, interface: &Interface) -> Result<Self, Fault> {
        Self::new(memory, interface.name, interface.to_front, interface.to_back)
    }

    /// The daemon's end; continues from the page's indexes.
    ///
    /// # Errors
    /// [`Fault::Memory`] if the memory is not one page.
    pub fn back(memory: M, interface: &Interface) -> Result<Self, Fault> {
        Self::new(memory, interface.name, interface.to_back, interface.to_front)
    }

    fn new(memory: M, name: &'static str, input: Layout, output: Layout) -> Result<Self, Fault> {
        let len = memory.len();
        if len != PAGE_SIZE {
            return Err(Fault::Memory { stream: name, len });
        }
        let mut stream = Self { memory, name, input, output, cons: 0, prod: 0 };
        stream.cons = stream.page().load32(input.cons);
        stream.prod = stream.page().load32(output.prod);
        Ok(stream)
    }

    fn page(&self) -> Slot<'_> {
        // SAFETY: `new` checked that the memory is one page, which `self` borrows for the slot's life.
        unsafe { Slot::new(self.memory.base(), PAGE_SIZE) }
    }

    /// Bytes in a ring by its indexes, of which one is the peer's.
    fn used(&self, ring: Layout, prod: u32, cons: u32) -> Result<u32, Fault> {
        let used = prod.wrapping_sub(cons);
        if used > ring.size {
            return Err(Fault::Index { stream: self.name, prod, cons, size: ring.size });
        }
        Ok(used)
    }

    /// Bytes that can be read now.
    ///
    /// # Errors
    /// [`Fault::Index`].
    pub fn readable(&self) -> Result<usize, Fault> {
        let prod = self.page().load32(self.input.prod);
        fence(Ordering::Acquire);
        Ok(self.used(self.input, prod, self.cons)? as usize)
    }

    /// Bytes that can be written now.
    ///
    /// # Errors
    /// [`Fault::Index`].
    pub fn writable(&self) -> Result<usize, Fault> {
        let cons = self.page().load32(self.output.cons);
        // What was consumed is overwritten only after the consumer said so.
        fence(Ordering::Acquire);
        Ok((self.output.size - self.used(self.output, self.prod, cons)?) as usize)
    }

    /// Reads what there is, up to `into.len()` bytes; the count, 0 if there is nothing. Notify the peer if it is
    /// not 0.
    ///
    /// # Errors
    /// [`Fault::Index`], and nothing was read.
    pub fn read(&mut self, into: &mut [u8]) -> Result<usize, Fault> {
        let count = self.readable()?.min(into.len());
        let (first, second) = split(self.input, self.cons, count);
        let page = self.page();
        page.load_bytes(first, &mut into[..count - second]);
        page.load_bytes(self.input.ring, &mut into[count - second..count]);
        fence(Ordering::Release);
        let cons = self.cons.wrapping_add(count as u32);
        page.store32(self.input.cons, cons);
        self.cons = cons;
        Ok(count)
    }

    /// Writes what there is room for, up to `from.len()` bytes; the count. Notify the peer if it is not 0.
    ///
    /// # Errors
    /// [`Fault::Index`], and nothing was written.
    pub fn write(&mut self, from: &[u8]) -> Result<usize, Fault> {
        let count = self.writable()?.min(from.len());
        let (first, second) = split(self.output, self.prod, count);
        let page = self.page();
        page.store_bytes(first, &from[..count - second]);
        page.store_bytes(self.output.ring, &from[count - second..count]);
        fence(Ordering::Release);
        let prod = self.prod.wrapping_add(count as u32);
        page.store32(self.output.prod, prod);
        self.prod = prod;
        Ok(count)
    }

    /// Gives the memory back.
    pub fn into_memory(self) -> M {
        self.memory
    }
}

/// Where `count` bytes from `index` begin in the page, and how many of them are at the ring's start again.
fn split(ring: Layout, index: u32, count: usize) -> (usize, usize) {
    let at = (index & (ring.size - 1)) as usize;
    (ring.ring + at, (at + count).saturating_sub(ring.size as usize))
}
