//! Pages granted to the back end: what it reads from and writes to without a copy.

use arrayvec::ArrayVec;
use hypervisor::{Access, DomId, Hypervisor, PAGE_SIZE, Shared};
use ring_abi::blkif::{MAX_SEGMENTS, SECTOR, Segment};
use vm_memory::{Bytes, VolatileSlice};

use crate::error::{Error, Result};
use crate::queue::Segments;

/// Octets of the largest buffer: what one request can carry, 44 KiB.
pub const MOST_OCTETS: usize = MAX_SEGMENTS * PAGE_SIZE;

/// Granted pages, zeroed at first. While a request is under way its buffer belongs to the device.
#[derive(Debug)]
pub struct Buffer {
    pages: Shared,
}

impl Buffer {
    /// Grants pages for so many octets, at most [`MOST_OCTETS`].
    pub(crate) fn new(hv: &dyn Hypervisor, peer: DomId, octets: usize) -> Result<Buffer> {
        if octets == 0 || octets > MOST_OCTETS {
            return Err(Error::Length { octets });
        }
        Ok(Buffer { pages: hv.share(peer, octets.div_ceil(PAGE_SIZE), Access::ReadWrite)? })
    }

    /// Octets of all its pages.
    pub fn capacity(&self) -> usize {
        self.pages.pages() * PAGE_SIZE
    }

    /// The memory. The back end may write to it while a request is under way, and a hostile one at any time.
    ///
    /// # Panics
    /// If `len` is more than [`Buffer::capacity`].
    pub fn memory(&self, len: usize) -> VolatileSlice<'_> {
        self.pages.slice(0, len).expect("a part of the buffer")
    }

    /// Copies octets into the buffer, from its start.
    ///
    /// # Panics
    /// If they do not fit.
    pub fn fill(&self, octets: &[u8]) {
        self.memory(octets.len()).copy_from(octets);
    }

    /// Copies octets out of the buffer, from its start.
    ///
    /// # Panics
    /// If there are not as many.
    pub fn copy_to(&self, octets: &mut [u8]) {
        let copied = self.memory(octets.len()).read_slice(octets, 0);
        debug_assert!(copied.is_ok(), "the slice is as long as the octets");
    }

    /// The first `octets` as segments; whole sectors, at most the capacity.
    #[inline]
    pub(crate) fn segments(&self, octets: usize) -> Option<Segments> {
        if octets == 0 || !octets.is_multiple_of(SECTOR) || octets > self.capacity() {
            return None;
        }
        let mut segments = ArrayVec::new();
        for (page, &gref) in self.pages.refs()[..octets.div_ceil(PAGE_SIZE)].iter().enumerate() {
            let sectors = ((octets - page * PAGE_SIZE).min(PAGE_SIZE) / SECTOR) as u8;
            segments.push(Segment { gref, first_sect: 0, last_sect: sectors - 1 });
        }
        Some(segments)
    }
}
