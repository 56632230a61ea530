// Not a core: does I/O or calls a hypervisor.

//! The memory of one request: what an engine reads and writes, and the guest's pages that a bounce buffer stands for.

use grant_table::persist::Page;
use grant_table::{CopyOp, CopyPtr, Mapping, Mappings};
use ring_abi::DomId;
use ring_abi::blkif::{MAX_SEGMENTS, SECTOR, Segment};
use smallvec::SmallVec;
use vm_memory::VolatileSlice;

use crate::engine::{Buffer, IoTable, Operation, Slices};
use crate::request::{PendingRequest, Tag};

/// Pages that stay mapped.
pub(super) type Pages = SmallVec<[Page; MAX_SEGMENTS]>;

/// What keeps the memory of a request. At most one of mapping and pages is in use, with or without a buffer.
pub(super) struct Memory {
    /// The guest's pages, mapped for this request.
    pub(super) mapping: Mapping,
    /// The guest's pages, which stay mapped.
    pub(super) pages: Pages,
    /// What the engine is given instead of the guest's pages.
    pub(super) buffer: Option<Buffer>,
    /// The guest's pages could not be mapped or copied, or there is no buffer yet.
    pub(super) refused: bool,
    /// There is no buffer yet: the request is started again.
    pub(super) waits: bool,
}

impl Memory {
    pub(super) fn empty() -> Memory {
        Memory {
            mapping: Mapping::empty(),
            pages: SmallVec::new(),
            buffer: None,
            refused: false,
            waits: false,
        }
    }

    /// Gives back memory that a request of many pages has allocated.
    pub(super) fn give_back_spare(&mut self) {
        self.pages.shrink_to_fit();
        if self.mapping.pages() == 0 {
            self.mapping = Mapping::empty();
        }
    }

    /// Collects what the engine is to read or write; `false` if the guest's pages could not be had.
    #[inline]
    pub(super) fn collect<'m>(&'m self, request: &PendingRequest, slices: &mut Slices<'_, 'm>) -> bool {
        if self.refused {
            return false;
        }
        if request.operation() == Operation::Discard {
            slices.cover(request.bytes());
            return true;
        }
        let segments = request.segments();
        if let Some(buffer) = &self.buffer {
            return buffer.slice(0, request.bytes()).is_some_and(|all| slices.push(all));
        }
        let mut push = |slice: Option<VolatileSlice<'m>>| slice.is_some_and(|slice| slices.push(slice));
        if self.pages.is_empty() {
            segments.iter().enumerate().all(|(number, segment)| {
                let (offset, len) = byte_range(segment);
                push(self.mapping.slice(number, offset.into(), len.into()).map(VolatileSlice::from))
            })
        } else {
            segments.iter().zip(&self.pages).all(|(segment, page)| {
                let (offset, len) = byte_range(segment);
                push(page.slice(0, offset.into(), len.into()).map(VolatileSlice::from))
            })
        }
    }

    /// The copy of one segment between the guest's page and the buffer, at byte `at` of it: to the page for a read.
    pub(super) fn copy_op(
        &self,
        peer: DomId,
        operation: Operation,
        (number, segment): (usize, &Segment),
        at: usize,
    ) -> Option<CopyOp<'_>> {
        let (offset, len) = byte_range(segment);
        let local = CopyPtr::Memory(self.buffer.as_ref()?.slice(at, len.into())?.into());
        let guest = match self.pages.get(number) {
            Some(page) => CopyPtr::Memory(page.slice(0, offset.into(), len.into())?),
            None => CopyPtr::Grant { domid: peer, gref: segment.gref, offset },
        };
        Some(match operation {
            Operation::Read => CopyOp::new(local, guest, len),
            _ => CopyOp::new(guest, local, len),
        })
    }
}

impl Mappings for IoTable<Memory> {
    #[inline]
    fn mapping(&mut self, number: u32) -> &mut Mapping {
        &mut self.memory_mut(Tag(number)).mapping
    }
}

/// A segment's first byte in its page, and its length in bytes.
#[inline]
pub(super) fn byte_range(segment: &Segment) -> (u16, u16) {
    let sectors = u16::from(segment.last_sect - segment.first_sect) + 1;
    (u16::from(segment.first_sect) * SECTOR as u16, sectors * SECTOR as u16)
}
