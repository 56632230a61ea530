// Not a core: does I/O or calls a hypervisor.

//! Pages granted to the backend, which reads and writes them without a copy.

use arrayvec::ArrayVec;
use grant_table::{Access, GrantTable, Shared};
use ring_abi::blkif::{SECTOR, Segment};
use ring_abi::{DomId, PAGE_SIZE};
use vm_memory::{Bytes, VolatileSlice};

use crate::error::{Error, Result};
use crate::queue::Segments;
use crate::split::MAX_REQUEST_BYTES;

/// Granted pages, zeroed at first. While a request is in flight its buffer belongs to the device.
#[derive(Debug)]
pub struct Buffer {
    pages: Shared,
}

impl Buffer {
    /// Grants pages for `bytes` bytes, at most [`MAX_REQUEST_BYTES`].
    pub(crate) fn new(grants: &dyn GrantTable, peer: DomId, bytes: usize) -> Result<Buffer> {
        if bytes == 0 || bytes > MAX_REQUEST_BYTES {
            return Err(Error::Length { bytes });
        }
        Ok(Buffer { pages: grants.share(peer, bytes.div_ceil(PAGE_SIZE), Access::ReadWrite)? })
    }

    /// Length of all pages in bytes.
    pub fn capacity(&self) -> usize {
        self.pages.pages() * PAGE_SIZE
    }

    /// The memory. The backend may write to it while a request is in flight, and a hostile one at any time.
    ///
    /// # Panics
    /// If `len` is more than [`Buffer::capacity`].
    pub fn memory(&self, len: usize) -> VolatileSlice<'_> {
        self.pages.slice(0, len).expect("a part of the buffer").into()
    }

    /// Copies bytes into the buffer, from its start.
    ///
    /// # Panics
    /// If they do not fit.
    pub fn fill(&self, bytes: &[u8]) {
        self.memory(bytes.len()).copy_from(bytes);
    }

    /// Copies bytes out of the buffer, from its start.
    ///
    /// # Panics
    /// If the buffer is shorter than `bytes`.
    pub fn copy_to(&self, bytes: &mut [u8]) {
        let copied = self.memory(bytes.len()).read_slice(bytes, 0);
        debug_assert!(copied.is_ok(), "the slice is as long as the bytes");
    }

    /// The first `bytes` bytes as segments; `None` if they are no whole sectors, or more than the capacity.
    #[inline]
    pub(crate) fn segments(&self, bytes: usize) -> Option<Segments> {
        if bytes == 0 || !bytes.is_multiple_of(SECTOR) || bytes > self.capacity() {
            return None;
        }
        let mut segments = ArrayVec::new();
        for (page, &gref) in self.pages.refs()[..bytes.div_ceil(PAGE_SIZE)].iter().enumerate() {
            let sectors = ((bytes - page * PAGE_SIZE).min(PAGE_SIZE) / SECTOR) as u8;
            segments.push(Segment { gref, first_sect: 0, last_sect: sectors - 1 });
        }
        Some(segments)
    }
}
