// Not a core: does I/O or calls a hypervisor.

//! One disk operation, and the memory that it reads or writes.
#![allow(clippy::large_enum_variant)] // Boxing the common case would allocate for every request.

use super::BounceBuffer;
use crate::disk_request::Operation;
use grant_table::Mapping;
use grant_table::persist::Page;
use smallvec::SmallVec;
use std::io;
use vm_memory::{MmapRegion, VolatileMemory, VolatileSlice};

/// Part of a guest's page, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PageSegment {
    /// Index of the page in the operation's data.
    pub page: u16,
    /// First byte in the page.
    pub offset: u16,
    /// Length in bytes.
    pub len: u16,
}

/// Memory of an operation. It stays valid until the engine hands the operation back: the kernel never writes to a
/// page that was unmapped meanwhile.
#[derive(Debug)]
pub enum Data {
    /// No memory: a flush.
    None,
    /// A guest's pages, unmapped when this is dropped.
    Mapped(Mapping),
    /// A guest's pages that stay mapped for later operations.
    Persistent(SmallVec<[Page; 11]>),
    /// Contiguous memory of the backend.
    Private(MmapRegion),
    /// The first so many bytes of a bounce buffer.
    Bounced(Buffer, usize),
}

/// A bounce buffer.
#[derive(Debug)]
pub enum Buffer {
    /// Memory of its own.
    Private(MmapRegion),
    /// Part of a pool.
    Pooled(BounceBuffer),
}

impl Buffer {
    /// Part of the buffer; `None` if it is not inside.
    #[inline]
    pub fn slice(&self, offset: usize, len: usize) -> Option<VolatileSlice<'_>> {
        match self {
            Buffer::Private(region) => region.get_slice(offset, len).ok(),
            Buffer::Pooled(buffer) => buffer.slice(offset, len),
        }
    }
}

impl Data {
    fn slice(&self, segment: &PageSegment) -> Option<VolatileSlice<'_>> {
        match self {
            Data::Mapped(mapping) => mapping
                .slice(segment.page.into(), segment.offset.into(), segment.len.into())
                .map(VolatileSlice::from),
            Data::Persistent(pages) => pages
                .get(usize::from(segment.page))?
                .slice(0, segment.offset.into(), segment.len.into())
                .map(VolatileSlice::from),
            Data::None | Data::Private(_) | Data::Bounced(..) => None,
        }
    }

    /// The backend's own memory, all of which is read or written.
    fn whole(&self) -> Option<VolatileSlice<'_>> {
        match self {
            Data::Private(region) => Some(region.as_volatile_slice()),
            Data::Bounced(buffer, len) => buffer.slice(0, *len),
            Data::None | Data::Mapped(_) | Data::Persistent(_) => None,
        }
    }
}

/// One operation. An engine owns it from [`submit`](super::Engine::submit) to its [`Completion`].
#[derive(Debug)]
pub struct IoRequest {
    /// The caller's identifier, not interpreted by engines.
    pub tag: u64,
    /// What to do.
    pub operation: Operation,
    /// First sector, in units of 512 bytes.
    pub sector: u64,
    data: Data,
    segments: SmallVec<[PageSegment; 11]>,
}

/// An operation that an engine hands back.
#[derive(Debug)]
pub struct Completion {
    /// The operation.
    pub request: Box<IoRequest>,
    /// `Ok` if all bytes were read or written.
    pub result: io::Result<()>,
}

impl IoRequest {
    /// Allocates an operation without memory, to be set up and reused without further allocations.
    pub fn empty() -> Box<IoRequest> {
        Box::new(IoRequest {
            tag: 0,
            operation: Operation::Flush,
            sector: 0,
            data: Data::None,
            segments: SmallVec::new(),
        })
    }

    /// Allocates an operation that reads or writes all of `region`.
    pub fn private(tag: u64, operation: Operation, sector: u64, region: MmapRegion) -> Box<IoRequest> {
        Box::new(IoRequest { tag, operation, sector, data: Data::Private(region), segments: SmallVec::new() })
    }

    /// Allocates a flush.
    pub fn flush(tag: u64) -> Box<IoRequest> {
        let mut request = IoRequest::empty();
        request.set_flush(tag);
        request
    }

    /// Sets the operation up as a flush.
    pub fn set_flush(&mut self, tag: u64) {
        self.clear();
        self.set(tag, Operation::Flush, 0, Data::None);
    }

    /// Sets the operation up to read or write segments of a guest's mapped pages, in their order. Clears it and
    /// returns `false` if a segment is not inside the pages.
    #[inline]
    pub fn set_guest_pages(
        &mut self,
        tag: u64,
        operation: Operation,
        sector: u64,
        pages: Data,
        segments: impl IntoIterator<Item = PageSegment>,
    ) -> bool {
        self.segments.clear();
        self.segments.extend(segments);
        if !self.segments.iter().all(|segment| pages.slice(segment).is_some()) {
            self.clear();
            return false;
        }
        self.set(tag, operation, sector, pages);
        true
    }

    /// Sets the operation up to read or write the first `len` bytes of a bounce buffer that is at least as long.
    pub fn set_bounced(&mut self, tag: u64, operation: Operation, sector: u64, buffer: Buffer, len: usize) {
        debug_assert!(buffer.slice(0, len).is_some());
        self.segments.clear();
        self.set(tag, operation, sector, Data::Bounced(buffer, len));
    }

    #[inline]
    fn set(&mut self, tag: u64, operation: Operation, sector: u64, data: Data) {
        self.tag = tag;
        self.operation = operation;
        self.sector = sector;
        self.data = data;
    }

    /// Whether the memory is the guest's pages.
    pub fn is_guest_memory(&self) -> bool {
        matches!(self.data, Data::Mapped(_) | Data::Persistent(_))
    }

    /// Whether the memory is part of a [`BouncePool`](super::BouncePool).
    #[inline]
    pub fn is_pooled(&self) -> bool {
        matches!(self.data, Data::Bounced(Buffer::Pooled(_), _))
    }

    /// Takes the buffer of [`IoRequest::set_bounced`] out again.
    pub fn take_bounce_buffer(&mut self) -> Option<Buffer> {
        match std::mem::replace(&mut self.data, Data::None) {
            Data::Bounced(buffer, _) => Some(buffer),
            other => {
                self.data = other;
                None
            }
        }
    }

    /// Drops the memory: a guest's pages are unmapped.
    #[inline]
    pub fn clear(&mut self) {
        self.data = Data::None;
        self.segments.clear();
    }

    /// The memory, in the order of the disk's bytes.
    #[inline]
    pub fn slices(&self) -> impl Iterator<Item = VolatileSlice<'_>> {
        self.data.whole().into_iter().chain(self.segments.iter().filter_map(|s| self.data.slice(s)))
    }

    /// Bytes to read or write.
    #[inline]
    pub fn len(&self) -> usize {
        match self.data.whole() {
            Some(whole) => whole.len(),
            None => self.segments.iter().map(|segment| usize::from(segment.len)).sum(),
        }
    }

    /// Whether there is nothing to read or write.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Returns the memory.
    pub fn into_data(self) -> Data {
        self.data
    }
}
