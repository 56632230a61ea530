//! One disk operation, and the memory it reads or writes.
#![allow(clippy::large_enum_variant)] // Boxing the common case would allocate for every request.

use super::Run;
use crate::queue::Op;
use grant_table::persist::Page;
use hypervisor::Mapping;
use smallvec::SmallVec;
use std::io;
use vm_memory::{MmapRegion, VolatileMemory, VolatileSlice};

/// Part of a page, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Part {
    /// Which page of the operation's data.
    pub page: u16,
    /// First byte in the page.
    pub offset: u16,
    /// Bytes.
    pub len: u16,
}

/// Memory of an operation. It stays valid until the operation is handed back: the kernel cannot write into a page
/// that was unmapped under it.
#[derive(Debug)]
pub enum Data {
    /// None: a flush.
    None,
    /// A guest's pages, unmapped when this is dropped.
    Mapped(Mapping),
    /// A guest's pages that stay mapped for the next operation.
    Persistent(SmallVec<[Page; 11]>),
    /// Our own pages, contiguous.
    Own(MmapRegion),
    /// The first so many bytes of our own pages, which stand for a guest's.
    Bounced(Buffer, usize),
}

/// Our own pages that stand for a guest's.
#[derive(Debug)]
pub enum Buffer {
    /// On their own.
    Region(MmapRegion),
    /// Part of a slab.
    Run(Run),
}

impl Buffer {
    /// Part of it; `None` if it is not inside.
    #[inline]
    pub fn slice(&self, offset: usize, len: usize) -> Option<VolatileSlice<'_>> {
        match self {
            Buffer::Region(region) => region.get_slice(offset, len).ok(),
            Buffer::Run(run) => run.slice(offset, len),
        }
    }
}

impl Data {
    fn slice(&self, part: &Part) -> Option<VolatileSlice<'_>> {
        match self {
            Data::Mapped(mapping) => mapping.slice(part.page.into(), part.offset.into(), part.len.into()),
            Data::Persistent(pages) => {
                pages.get(usize::from(part.page))?.slice(0, part.offset.into(), part.len.into())
            }
            Data::None | Data::Own(_) | Data::Bounced(..) => None,
        }
    }

    /// The memory that is ours as a whole.
    fn whole(&self) -> Option<VolatileSlice<'_>> {
        match self {
            Data::Own(region) => Some(region.as_volatile_slice()),
            Data::Bounced(buffer, len) => buffer.slice(0, *len),
            Data::None | Data::Mapped(_) | Data::Persistent(_) => None,
        }
    }
}

/// One operation. An engine owns it from [`submit`](super::Engine::submit) to its [`Done`].
#[derive(Debug)]
pub struct Io {
    /// The caller's own mark.
    pub tag: u64,
    /// What to do.
    pub op: Op,
    /// First sector, in units of 512 bytes.
    pub sector: u64,
    data: Data,
    parts: SmallVec<[Part; 11]>,
}

/// An operation that is over.
#[derive(Debug)]
pub struct Done {
    /// The operation.
    pub io: Box<Io>,
    /// How it went: all of it was moved, or why not.
    pub result: io::Result<()>,
}

impl Io {
    /// An operation that does nothing yet; to be made into one, again and again without an allocation.
    pub fn blank() -> Box<Io> {
        Box::new(Io { tag: 0, op: Op::Flush, sector: 0, data: Data::None, parts: SmallVec::new() })
    }

    /// Moves pages of our own, all of them.
    pub fn own(tag: u64, op: Op, sector: u64, pages: MmapRegion) -> Box<Io> {
        Box::new(Io { tag, op, sector, data: Data::Own(pages), parts: SmallVec::new() })
    }

    /// A flush.
    pub fn flush(tag: u64) -> Box<Io> {
        let mut io = Io::blank();
        io.set_flush(tag);
        io
    }

    /// Becomes a flush.
    pub fn set_flush(&mut self, tag: u64) {
        self.clear();
        (self.tag, self.op, self.sector) = (tag, Op::Flush, 0);
    }

    /// Becomes one that moves parts of a guest's mapped pages, in their order, to or from `sector` on. `false`, and a
    /// blank, if a part is not inside the pages.
    #[inline]
    pub fn set_pages(
        &mut self,
        tag: u64,
        op: Op,
        sector: u64,
        pages: Data,
        parts: impl IntoIterator<Item = Part>,
    ) -> bool {
        self.parts.clear();
        self.parts.extend(parts);
        if !self.parts.iter().all(|part| pages.slice(part).is_some()) {
            self.clear();
            return false;
        }
        (self.tag, self.op, self.sector, self.data) = (tag, op, sector, pages);
        true
    }

    /// Becomes one that moves the first `len` bytes of a buffer of ours, which has them.
    pub fn set_bounced(&mut self, tag: u64, op: Op, sector: u64, buffer: Buffer, len: usize) {
        debug_assert!(buffer.slice(0, len).is_some());
        self.parts.clear();
        (self.tag, self.op, self.sector, self.data) = (tag, op, sector, Data::Bounced(buffer, len));
    }

    /// Whether the memory is a guest's own.
    pub fn is_guests(&self) -> bool {
        matches!(self.data, Data::Mapped(_) | Data::Persistent(_))
    }

    /// Whether the memory is a slab's.
    #[inline]
    pub fn is_slabs(&self) -> bool {
        matches!(self.data, Data::Bounced(Buffer::Run(_), _))
    }

    /// The buffer of [`Io::set_bounced`], back.
    pub fn take_bounced(&mut self) -> Option<Buffer> {
        match std::mem::replace(&mut self.data, Data::None) {
            Data::Bounced(buffer, _) => Some(buffer),
            other => {
                self.data = other;
                None
            }
        }
    }

    /// Lets go of the memory: a guest's pages are unmapped.
    #[inline]
    pub fn clear(&mut self) {
        self.data = Data::None;
        self.parts.clear();
    }

    /// The memory, in the order of the disk's bytes.
    #[inline]
    pub fn slices(&self) -> impl Iterator<Item = VolatileSlice<'_>> {
        self.data.whole().into_iter().chain(self.parts.iter().filter_map(|part| self.data.slice(part)))
    }

    /// Bytes to move.
    #[inline]
    pub fn len(&self) -> usize {
        match self.data.whole() {
            Some(whole) => whole.len(),
            None => self.parts.iter().map(|p| usize::from(p.len)).sum(),
        }
    }

    /// Whether nothing is to be moved.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Gives the memory back.
    pub fn into_data(self) -> Data {
        self.data
    }
}
