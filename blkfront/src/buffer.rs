// Not a core: does I/O or calls a hypervisor.

//! Pages granted to the backend, which reads and writes them without a copy.

use grant_table::{Access, GrantTable, Shared};
use ring_abi::blkif::{MAX_INDIRECT_PAGES, MAX_SEGMENTS, SECTOR, Segment, indirect};
use ring_abi::{DomId, GrantRef, PAGE_SIZE};
use vm_memory::{Bytes, VolatileSlice};

use crate::error::{Error, Result};
use crate::queue::Segments;
use crate::split::MAX_REQUEST_BYTES;

/// Granted pages, zeroed at first. While a request is in flight its buffer belongs to the device. The pages hold nothing but data of
/// disks of the backend that they are granted to: no backend sees more, which Linux's blkfront, whose pages are its callers',
/// ensures by copies where the frontend's key `trusted` is 0.
///
/// Granting pages is dear, and moving a buffer is not: one that came back is used for the next request.
#[derive(Debug)]
pub struct Buffer(Box<Pages>);

#[derive(Debug)]
struct Pages {
    shared: Shared,
    /// The first pages, whole: as many as a request has segments of its own.
    segments: Segments,
    /// Of a buffer too large for a request's own segments.
    indirect: Option<IndirectPages>,
}

/// Granted pages that hold the segments of a request.
#[derive(Debug)]
struct IndirectPages {
    shared: Shared,
    /// The segments of all data pages, whole, as the pages hold them.
    whole: Vec<u8>,
}

impl IndirectPages {
    /// Grants pages for the segments of these data pages. The backend reads them only, but Linux's maps all pages of a frontend with
    /// persistent grants for writing.
    fn new(grants: &dyn GrantTable, peer: DomId, refs: &[GrantRef]) -> Result<IndirectPages> {
        let pages = indirect::page_bytes(refs.len()).count();
        let shared = grants.share(peer, pages, Access::ReadWrite)?;
        let segments: Vec<_> = refs.iter().map(whole_page).collect();
        let mut whole = vec![0; segments.len() * indirect::SEGMENT];
        indirect::write_segments(&mut whole, &segments);
        Ok(IndirectPages { shared, whole })
    }

    /// Writes the segments of the first `bytes` bytes of the data pages; returns how many there are, and the grants of their pages.
    fn describe(&self, refs: &[GrantRef], bytes: usize) -> (u16, [GrantRef; MAX_INDIRECT_PAGES]) {
        let count = bytes.div_ceil(PAGE_SIZE);
        let all = count * indirect::SEGMENT;
        let last_sect = ((bytes - 1) % PAGE_SIZE / SECTOR) as u8;
        let last = Segment { last_sect, ..whole_page(&refs[count - 1]) };
        let mut last_bytes = [0; indirect::SEGMENT];
        indirect::write_segments(&mut last_bytes, &[last]);
        let (start, len) = (all - indirect::SEGMENT, indirect::SEGMENT);
        let slice = |at, len| self.shared.slice(at, len).expect("a page for each 512 segments");
        slice(0, start).copy_from(&self.whole[..start]);
        slice(start, len).copy_from(&last_bytes);
        let of_pages = self.shared.refs();
        let grefs = std::array::from_fn(|page| of_pages.get(page).copied().unwrap_or(GrantRef(0)));
        (count as u16, grefs)
    }
}

impl Buffer {
    /// Grants pages for `bytes` bytes, at most `max`; those of the segments, too, where they do not fit into a request.
    pub(crate) fn new(grants: &dyn GrantTable, peer: DomId, bytes: usize, max: usize) -> Result<Buffer> {
        if bytes == 0 || bytes > max {
            return Err(Error::Length { bytes, max });
        }
        let shared = grants.share(peer, bytes.div_ceil(PAGE_SIZE), Access::ReadWrite)?;
        let refs = shared.refs();
        let segments = refs.iter().take(MAX_SEGMENTS).map(whole_page).collect();
        let is_large = bytes > MAX_REQUEST_BYTES;
        let indirect = is_large.then(|| IndirectPages::new(grants, peer, refs)).transpose()?;
        Ok(Buffer(Box::new(Pages { shared, segments, indirect })))
    }

    /// Describes the first `bytes` bytes, which are whole sectors inside the buffer and more than [`MAX_REQUEST_BYTES`], for an
    /// indirect request.
    pub(crate) fn describe(&self, bytes: usize) -> (u16, [GrantRef; MAX_INDIRECT_PAGES]) {
        let Pages { shared, indirect, .. } = &*self.0;
        let described = indirect.as_ref().map(|pages| pages.describe(shared.refs(), bytes));
        described.unwrap_or((0, [GrantRef(0); MAX_INDIRECT_PAGES]))
    }

    /// Length of all pages in bytes.
    #[inline]
    pub fn capacity(&self) -> usize {
        self.0.shared.pages() * PAGE_SIZE
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

    /// Appends the segments of the first `bytes` bytes, which are whole sectors inside the buffer, and not more than a request's own
    /// segments hold.
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

fn whole_page(gref: &GrantRef) -> Segment {
    Segment { gref: *gref, first_sect: 0, last_sect: LAST_SECTOR }
}

/// The last sector of a page.
const LAST_SECTOR: u8 = (PAGE_SIZE / SECTOR - 1) as u8;
