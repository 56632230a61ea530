//! Block interface: `io/blkif.h`. Meaning, and the 64-bit wire layout ([`X86_64`], the native one here).
//!
//! The 32-bit layout is in [`x86_32`]; both carry the same [`Request`] and [`Response`].

#![allow(unsafe_code)] // `WireValue` for a segment, which is plain bytes.

pub mod indirect;
pub mod key;
pub mod vdev;
pub mod x86_32;

use crate::GrantRef;
use crate::ring::Protocol;
use crate::shm::{Slot, WireValue};
use arrayvec::ArrayVec;

pub use x86_32::X86_32;

/// Read sectors into the segments: `BLKIF_OP_READ` (blkif.h:477).
pub const OP_READ: u8 = 0;
/// Write the segments to sectors: `BLKIF_OP_WRITE`.
pub const OP_WRITE: u8 = 1;
/// Write after all earlier, before all later writes are durable: `BLKIF_OP_WRITE_BARRIER`.
pub const OP_WRITE_BARRIER: u8 = 2;
/// Make all completed writes durable: `BLKIF_OP_FLUSH_DISKCACHE`.
pub const OP_FLUSH_DISKCACHE: u8 = 3;
/// Unmap sectors: `BLKIF_OP_DISCARD`.
pub const OP_DISCARD: u8 = 5;
/// A read or write whose segments lie in pages of their own: `BLKIF_OP_INDIRECT`.
pub const OP_INDIRECT: u8 = 6;

/// Most segments in a request's own slot: `BLKIF_MAX_SEGMENTS_PER_REQUEST`.
pub const MAX_SEGMENTS: usize = 11;
/// Most pages of indirect segments: `BLKIF_MAX_INDIRECT_PAGES_PER_REQUEST`.
pub const MAX_INDIRECT_PAGES: usize = 8;
/// Segments in one indirect page.
pub const SEGMENTS_PER_INDIRECT_PAGE: usize = crate::PAGE_SIZE / 8;
/// Bytes in the unit of `sector_number`, `first_sect` and `last_sect`, whatever `sector-size` says.
pub const SECTOR: usize = 512;
/// Discard flag: `BLKIF_DISCARD_SECURE`.
pub const DISCARD_SECURE: u8 = 1;

/// `VDISK_CDROM` and others: bits of the `info` key.
pub mod info {
    /// The disk is a CD-ROM.
    pub const CDROM: u32 = 1;
    /// The medium can be removed.
    pub const REMOVABLE: u32 = 2;
    /// The disk cannot be written.
    pub const READONLY: u32 = 4;
}

/// Part of a page: `struct blkif_request_segment` (blkif.h:588), 8 bytes.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
#[repr(C)]
pub struct Segment {
    /// The granted page.
    pub gref: GrantRef,
    /// First 512-byte sector in the page, inclusive, 0 to 7.
    pub first_sect: u8,
    /// Last 512-byte sector in the page, inclusive, 0 to 7.
    pub last_sect: u8,
}

// SAFETY: `repr(C)`, 8 bytes of which the last two are padding; the fields are plain numbers.
unsafe impl WireValue for Segment {
    const FIELDS: u64 = 0x0000_ffff_ffff_ffff;

    #[inline(always)]
    fn to_word(self) -> u64 {
        let [gref, sectors] = self.to_words();
        u64::from(gref) | u64::from(sectors) << 32
    }
}
const _: () = assert!(size_of::<Segment>() == 8);

impl Segment {
    /// From the two 32-bit words of the wire; the two bytes of padding are dropped.
    #[inline(always)]
    pub fn from_words(gref: u32, sectors: u32) -> Self {
        let [first_sect, last_sect, ..] = sectors.to_le_bytes();
        Self { gref: GrantRef(gref), first_sect, last_sect }
    }

    /// To the two words of the wire.
    #[inline(always)]
    pub fn to_words(self) -> [u32; 2] {
        [self.gref.0, u32::from_le_bytes([self.first_sect, self.last_sect, 0, 0])]
    }
}

/// A request, independent of its wire layout. Numbers are as the peer wrote them: nothing is checked yet.
#[derive(Clone, PartialEq, Eq, Debug)]
// Moved in aligned words, and with the id in the same place whatever the kind: a compact tag makes copies that
// straddle words and stall.
#[repr(C, u64)]
pub enum Request {
    /// [`OP_READ`], [`OP_WRITE`], [`OP_WRITE_BARRIER`] or [`OP_FLUSH_DISKCACHE`].
    Io(Io),
    /// [`OP_DISCARD`].
    Discard(Discard),
    /// [`OP_INDIRECT`].
    Indirect(Indirect),
    /// An operation that this protocol does not know; answered [`Status::EOPNOTSUPP`].
    Unknown {
        /// To be echoed.
        id: u64,
        /// The operation found.
        operation: u8,
    },
}

impl Request {
    /// To be echoed in the response.
    #[inline]
    pub fn id(&self) -> u64 {
        match self {
            Self::Io(r) => r.id,
            Self::Discard(r) => r.id,
            Self::Indirect(r) => r.id,
            Self::Unknown { id, .. } => *id,
        }
    }

    /// The operation as the response echoes it: that of the slot, but for an indirect request the one inside, as Linux's backend
    /// answers and its frontend demands (dispatch_rw_block_io of xen-blkback, blkif_interrupt of xen-blkfront).
    #[inline]
    pub fn operation(&self) -> u8 {
        if let Self::Io(r) = self { r.operation } else { self.rare_operation() }
    }

    #[inline(never)]
    fn rare_operation(&self) -> u8 {
        match self {
            Self::Io(r) => r.operation,
            Self::Discard(_) => OP_DISCARD,
            Self::Indirect(r) => r.indirect_op,
            Self::Unknown { operation, .. } => *operation,
        }
    }
}

/// `struct blkif_request` (blkif.h:599).
///
/// In memory the segments are aligned as they are on the wire, for copies of sixteen bytes.
#[derive(Clone, PartialEq, Eq, Debug)]
#[repr(C, align(16))]
pub struct Io {
    /// Echoed in the response.
    pub id: u64,
    /// First sector, in units of [`SECTOR`] bytes.
    pub sector_number: u64,
    /// [`OP_READ`], [`OP_WRITE`], [`OP_WRITE_BARRIER`] or [`OP_FLUSH_DISKCACHE`].
    pub operation: u8,
    /// `nr_segments` as found; more than [`MAX_SEGMENTS`] is the request's error.
    pub nr_segments: u8,
    /// As the frontend's device number; ignored by backends.
    pub handle: u16,
    /// The segments, at most [`MAX_SEGMENTS`] of them.
    pub segments: ArrayVec<Segment, MAX_SEGMENTS>,
}

impl Io {
    /// A placeholder without an operation, for [`crate::ring::Back::pop_into`] to overwrite.
    pub const EMPTY: Self = Self {
        operation: 0,
        handle: 0,
        id: 0,
        sector_number: 0,
        nr_segments: 0,
        segments: ArrayVec::new_const(),
    };
}

impl Default for Request {
    #[inline]
    fn default() -> Self {
        Self::Io(Io::EMPTY)
    }
}

/// `struct blkif_request_discard` (blkif.h:612).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(C)]
pub struct Discard {
    /// Echoed in the response.
    pub id: u64,
    /// [`DISCARD_SECURE`] or 0.
    pub flag: u8,
    /// Ignored by backends.
    pub handle: u16,
    /// First sector, in units of [`SECTOR`] bytes.
    pub sector_number: u64,
    /// Sectors, in units of [`SECTOR`] bytes.
    pub nr_sectors: u64,
}

/// `struct blkif_request_indirect` (blkif.h:622).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(C)]
pub struct Indirect {
    /// Echoed in the response.
    pub id: u64,
    /// [`OP_READ`] or [`OP_WRITE`]; anything else, [`OP_INDIRECT`] included, is the request's error.
    pub indirect_op: u8,
    /// Segments in all the indirect pages.
    pub nr_segments: u16,
    /// First sector, in units of [`SECTOR`] bytes.
    pub sector_number: u64,
    /// Ignored by backends.
    pub handle: u16,
    /// Pages of segments; `nr_segments.div_ceil(512)` of them are used.
    pub indirect_grefs: [GrantRef; MAX_INDIRECT_PAGES],
}

/// `BLKIF_RSP_*` (blkif.h:502).
#[derive(Clone, Copy, PartialEq, Eq, Debug, PartialOrd, Ord)]
#[repr(transparent)]
pub struct Status(pub i16);

impl Status {
    /// Done.
    pub const OKAY: Self = Self(0);
    /// Failed for an unspecified reason.
    pub const ERROR: Self = Self(-1);
    /// The operation is not supported (only for barrier, flush, discard and unknown operations).
    pub const EOPNOTSUPP: Self = Self(-2);
}

/// `struct blkif_response` (blkif.h:633).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Response {
    /// Copied from the request.
    pub id: u64,
    /// Copied from the request.
    pub operation: u8,
    /// How it went.
    pub status: Status,
}

/// The 64-bit wire layout: `x86_64-abi`, native on 64-bit hosts. Requests 112 bytes, responses 16.
#[derive(Clone, Copy, Debug)]
pub enum X86_64 {}

impl Protocol for X86_64 {
    const NAME: &'static str = "blkif x86_64-abi";
    const SLOT: usize = 112;
    type Request = Request;
    type Response = Response;

    #[inline(always)]
    fn read_request(slot: Slot<'_>) -> Request {
        let mut request = Request::default();
        Self::read_request_into(slot, &mut request);
        request
    }

    #[inline(always)]
    fn read_request_into(slot: Slot<'_>, into: &mut Request) {
        let head = slot.load32(0);
        if head as u8 > OP_FLUSH_DISKCACHE {
            *into = read_rare(slot, head);
            return;
        }
        if !matches!(into, Request::Io(_)) {
            *into = Request::default();
        }
        if let Request::Io(io) = into {
            let [operation, nr_segments, handle @ ..] = head.to_le_bytes();
            io.operation = operation;
            io.nr_segments = nr_segments;
            io.handle = u16::from_le_bytes(handle);
            io.id = slot.load64(8);
            io.sector_number = slot.load64(16);
            slot.load_values(24, usize::from(nr_segments).min(MAX_SEGMENTS), &mut io.segments);
        }
    }

    #[inline(always)]
    fn write_request(slot: Slot<'_>, request: &Request) {
        let Request::Io(r) = request else { return write_rare(slot, request) };
        let [low, high] = r.handle.to_le_bytes();
        // With the padding after it, which would otherwise keep what an earlier response left.
        slot.store64(0, u32::from_le_bytes([r.operation, r.nr_segments, low, high]).into());
        slot.store64(8, r.id);
        slot.store64(16, r.sector_number);
        // The sizes that requests most often have, without a loop.
        if let Ok(one) = <&[Segment; 1]>::try_from(&r.segments[..]) {
            slot.store_values(24, one);
        } else if let Ok(all) = <&[Segment; MAX_SEGMENTS]>::try_from(&r.segments[..]) {
            slot.store_values(24, all);
        } else {
            for (i, segment) in r.segments.iter().enumerate() {
                slot.store64(24 + 8 * i, segment.to_word());
            }
        }
    }

    #[inline(always)]
    fn read_response(slot: Slot<'_>) -> Response {
        let id = slot.load64(0);
        let rest = slot.load32(8);
        Response { id, operation: rest as u8, status: Status((rest >> 16) as i16) }
    }

    #[inline(always)]
    fn write_response(slot: Slot<'_>, r: &Response) {
        slot.store64(0, r.id);
        slot.store64(8, u64::from(r.operation) | u64::from(r.status.0 as u16) << 16);
    }
}

/// Reads a request that is no read, write, barrier or flush; apart, so that the common path stays small.
#[inline(never)]
fn read_rare(slot: Slot<'_>, head: u32) -> Request {
    let [operation, second, handle @ ..] = head.to_le_bytes();
    let handle = u16::from_le_bytes(handle);
    match operation {
        OP_DISCARD => Request::Discard(Discard {
            flag: second,
            handle,
            id: slot.load64(8),
            sector_number: slot.load64(16),
            nr_sectors: slot.load64(24),
        }),
        OP_INDIRECT => Request::Indirect(Indirect {
            indirect_op: second,
            nr_segments: handle,
            id: slot.load64(8),
            sector_number: slot.load64(16),
            handle: slot.load32(24) as u16,
            indirect_grefs: core::array::from_fn(|i| GrantRef(slot.load32(28 + 4 * i))),
        }),
        _ => Request::Unknown { operation, id: slot.load64(8) },
    }
}

#[inline(never)]
fn write_rare(slot: Slot<'_>, request: &Request) {
    let head = |a: u8, b: u8, c: u16| {
        let [c, d] = c.to_le_bytes();
        slot.store64(0, u32::from_le_bytes([a, b, c, d]).into());
    };
    slot.store64(8, request.id());
    match request {
        Request::Io(_) => unreachable!("written by the caller"),
        Request::Discard(r) => {
            head(OP_DISCARD, r.flag, r.handle);
            slot.store64(16, r.sector_number);
            slot.store64(24, r.nr_sectors);
        }
        Request::Indirect(r) => {
            head(OP_INDIRECT, r.indirect_op, r.nr_segments);
            slot.store64(16, r.sector_number);
            slot.store32(24, r.handle.into());
            for (i, gref) in r.indirect_grefs.iter().enumerate() {
                slot.store32(28 + 4 * i, gref.0);
            }
        }
        Request::Unknown { operation, .. } => head(*operation, 0, 0),
    }
}
