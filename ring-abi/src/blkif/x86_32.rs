//! The 32-bit wire layout of blkif: `x86_32-abi`, where `uint64_t` is 4-aligned. Requests 108 bytes, responses 12.

use super::{
    Discard, Indirect, Io, MAX_SEGMENTS, OP_DISCARD, OP_FLUSH_DISKCACHE, OP_INDIRECT, OP_READ, OP_WRITE,
    OP_WRITE_BARRIER, Request, Response, Segment, Status,
};
use crate::GrantRef;
use crate::ring::Protocol;
use crate::shm::Slot;
use arrayvec::ArrayVec;

/// The 32-bit wire layout, asked for by `protocol` = `x86_32-abi`.
#[derive(Clone, Copy, Debug)]
pub enum X86_32 {}

/// A 4-aligned 64-bit number, low word first.
#[inline]
fn load(slot: &Slot<'_>, offset: usize) -> u64 {
    u64::from(slot.load32(offset)) | u64::from(slot.load32(offset + 4)) << 32
}

#[inline]
fn store(slot: &Slot<'_>, offset: usize, value: u64) {
    slot.store32(offset, value as u32);
    slot.store32(offset + 4, (value >> 32) as u32);
}

impl Protocol for X86_32 {
    const NAME: &'static str = "blkif x86_32-abi";
    const SLOT: usize = 108;
    type Request = Request;
    type Response = Response;

    #[inline]
    fn read_request(slot: Slot<'_>) -> Request {
        let [operation, second, handle @ ..] = slot.load32(0).to_le_bytes();
        let handle = u16::from_le_bytes(handle);
        match operation {
            OP_READ | OP_WRITE | OP_WRITE_BARRIER | OP_FLUSH_DISKCACHE => {
                let used = usize::from(second).min(MAX_SEGMENTS);
                let segment = |i| Segment::from_words(slot.load32(20 + 8 * i), slot.load32(24 + 8 * i));
                let segments: ArrayVec<_, MAX_SEGMENTS> = (0..used).map(segment).collect();
                let id = load(&slot, 4);
                let sector_number = load(&slot, 12);
                Request::Io(Io { operation, handle, id, sector_number, nr_segments: second, segments })
            }
            OP_DISCARD => Request::Discard(Discard {
                flag: second,
                handle,
                id: load(&slot, 4),
                sector_number: load(&slot, 12),
                nr_sectors: load(&slot, 20),
            }),
            OP_INDIRECT => Request::Indirect(Indirect {
                indirect_op: second,
                nr_segments: handle,
                id: load(&slot, 4),
                sector_number: load(&slot, 12),
                handle: slot.load32(20) as u16,
                indirect_grefs: core::array::from_fn(|i| GrantRef(slot.load32(24 + 4 * i))),
            }),
            _ => Request::Unknown { operation, id: load(&slot, 4) },
        }
    }

    #[inline]
    fn write_request(slot: Slot<'_>, request: &Request) {
        let head = |a: u8, b: u8, c: u16| {
            let [c, d] = c.to_le_bytes();
            slot.store32(0, u32::from_le_bytes([a, b, c, d]));
        };
        store(&slot, 4, request.id());
        match request {
            Request::Io(r) => {
                head(r.operation, r.nr_segments, r.handle);
                store(&slot, 12, r.sector_number);
                for (i, segment) in r.segments.iter().enumerate() {
                    let [gref, sectors] = segment.to_words();
                    slot.store32(20 + 8 * i, gref);
                    slot.store32(24 + 8 * i, sectors);
                }
            }
            Request::Discard(r) => {
                head(OP_DISCARD, r.flag, r.handle);
                store(&slot, 12, r.sector_number);
                store(&slot, 20, r.nr_sectors);
            }
            Request::Indirect(r) => {
                head(OP_INDIRECT, r.indirect_op, r.nr_segments);
                store(&slot, 12, r.sector_number);
                slot.store32(20, r.handle.into());
                for (i, gref) in r.indirect_grefs.iter().enumerate() {
                    slot.store32(24 + 4 * i, gref.0);
                }
            }
            Request::Unknown { operation, .. } => head(*operation, 0, 0),
        }
    }

    #[inline]
    fn read_response(slot: Slot<'_>) -> Response {
        let rest = slot.load32(8);
        Response { id: load(&slot, 0), operation: rest as u8, status: Status((rest >> 16) as i16) }
    }

    #[inline]
    fn write_response(slot: Slot<'_>, r: &Response) {
        store(&slot, 0, r.id);
        slot.store32(8, u32::from(r.operation) | u32::from(r.status.0 as u16) << 16);
    }
}
