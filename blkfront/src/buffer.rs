// Not a core: does I/O or calls a hypervisor.

//! Pages granted to the backend, which reads and writes them without a copy.

use grant_table::{Access, GrantTable, Shared};
use ring_abi::blkif::{SECTOR, Segment};
use ring_abi::{DomId, GrantRef, PAGE_SIZE};
use vm_memory::{Bytes, VolatileSlice};

use crate::error::{Error, Result};
use crate::queue::Segments;
use crate::split::MAX_REQUEST_BYTES;

/// Granted pages, zeroed at first. While a request is in flight its buffer belongs to the device.
///
/// Granting pages is dear, and moving a buffer is not: one that came back is used for the next request.
#[derive(Debug)]
pub struct Buffer(Box<Pages>);

#[derive(Debug)]
struct Pages {
    shared: Shared,
    /// All pages, whole.
    segments: Segments,
}

impl Buffer {
    /// Grants pages for `bytes` bytes, at most [`MAX_REQUEST_BYTES`].
    pub(crate) fn new(grants: &dyn GrantTable, peer: DomId, bytes: usize) -> Result<Buffer> {
        if bytes == 0 || bytes > MAX_REQUEST_BYTES {
            return Err(Error::Length { bytes });
        }
        let shared = grants.share(peer, bytes.div_ceil(PAGE_SIZE), Access::ReadWrite)?;
        let whole = |&gref: &GrantRef| Segment { gref, first_sect: 0, last_sect: LAST_SECTOR };
        let segments = shared.refs().iter().map(whole).collect();
        Ok(Buffer(Box::new(Pages { shared, segments })))
    }

    /// Length of all pages in bytes.
    #[inline]
    pub fn capacity(&self) -> usize {
        self.0.segments.len() * PAGE_SIZE
    }

    /// The memory. The backend may write to it while a request is in flight, and a hostile one at any time.
    ///
    /// # Panics
    /// If `len` is more than [`Buffer::capacity`].
    pub fn memory(&self, len: usize) -> VolatileSlice<'_> {
        self.0.shared.slice(0, len).expect("a part of the buffer").into()
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

    /// Whether the first `bytes` bytes are whole sectors inside the buffer.
    #[inline]
    pub(crate) fn has_sectors(&self, bytes: usize) -> bool {
        bytes > 0 && bytes.is_multiple_of(SECTOR) && bytes <= self.capacity()
    }

    /// Appends the segments of the first `bytes` bytes, which are whole sectors inside the buffer.
    #[inline]
    pub(crate) fn push_segments(&self, bytes: usize, into: &mut Segments) {
        let last_page = (bytes - 1) / PAGE_SIZE;
        let last_sect = ((bytes - 1) % PAGE_SIZE / SECTOR) as u8;
        let Some((last, whole)) = self.0.segments.get(..=last_page).and_then(<[Segment]>::split_last) else {
            return;
        };
        into.extend(whole.iter().copied());
        into.push(Segment { last_sect, ..*last });
    }
}

/// The last sector of a page.
const LAST_SECTOR: u8 = (PAGE_SIZE / SECTOR - 1) as u8;
