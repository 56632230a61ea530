//! Grant copy through `/dev/xen/gntdev`: Xen copies, nothing is mapped.
#![allow(unsafe_code)] // Structures for the ioctl, with pointers to our own memory.

use super::abi;
use super::gntdev::Gntdev;
use crate::copy::{CopyOp, CopyPtr};
use crate::error::{Error, Result};
use crate::{DomId, GrantRef, PAGE_SIZE};
use smallvec::SmallVec;
use vm_memory::VolatileSlice;

/// `GNTST_bad_copy_arg` (grant_table.h): the copy would cross a page.
const BAD_COPY_ARG: i16 = -10;
/// `GNTST_bad_page`.
const BAD_PAGE: i16 = -9;

/// Operations handed over without allocating: a full packet's slots and some.
const INLINE_OPS: usize = 32;

impl Gntdev {
    /// Carries out `ops`; each gets its status.
    pub(super) fn copy(&self, ops: &mut [CopyOp<'_>]) -> Result<()> {
        let mut segments: SmallVec<[abi::Segment; INLINE_OPS]> = SmallVec::new();
        let mut sent: SmallVec<[u32; INLINE_OPS]> = SmallVec::new();
        for (number, op) in ops.iter_mut().enumerate() {
            if let Some(status) = without_xen(op) {
                op.status = status;
            } else {
                segments.push(segment(op));
                sent.push(number as u32);
            }
        }
        self.submit(&mut segments)?;
        for (segment, &number) in segments.iter().zip(&sent) {
            let op = &mut ops[number as usize];
            op.status = match segment.status {
                BAD_PAGE if memory(op).is_some() => self.copy_bounced(op)?,
                status => status,
            };
        }
        Ok(())
    }

    /// Reads one byte of a granted page; gives `GNTST_*`.
    pub(super) fn read_byte(&self, peer: DomId, gref: GrantRef) -> Result<i16> {
        let mut byte = [0u8];
        let source = CopyPtr::Grant { domid: peer, gref, offset: 0 };
        let mut op = CopyOp::new(source, CopyPtr::Memory(VolatileSlice::from(&mut byte[..])), 1);
        self.copy(std::slice::from_mut(&mut op))?;
        Ok(op.status)
    }

    /// A copy whose memory is another domain's page, mapped: Xen takes no frame from us that is not ours
    /// (`GNTST_bad_page`), so that the bytes go through a buffer of our own.
    fn copy_bounced(&self, op: &CopyOp<'_>) -> Result<i16> {
        let mut buffer = [0u8; PAGE_SIZE];
        let buffer = VolatileSlice::from(&mut buffer[..usize::from(op.len)]);
        if let CopyPtr::Memory(memory) = op.source {
            memory.copy_to_volatile_slice(buffer);
            return self.copy_one(CopyPtr::Memory(buffer), op.dest, op.len);
        }
        let status = self.copy_one(op.source, CopyPtr::Memory(buffer), op.len)?;
        if let (0, CopyPtr::Memory(memory)) = (status, op.dest) {
            buffer.copy_to_volatile_slice(memory);
        }
        Ok(status)
    }

    fn copy_one(&self, source: CopyPtr<'_>, dest: CopyPtr<'_>, len: u16) -> Result<i16> {
        let mut only = [segment(&CopyOp::new(source, dest, len))];
        self.submit(&mut only)?;
        Ok(only[0].status)
    }

    fn submit(&self, segments: &mut [abi::Segment]) -> Result<()> {
        if segments.is_empty() {
            return Ok(());
        }
        let mut order = abi::Copy { count: segments.len() as u32, segments: segments.as_mut_ptr() };
        // SAFETY: `count` segments, each of which names grants or our own memory of at least `len` bytes, borrowed
        // by the `CopyOp` it was made from.
        unsafe { self.node.ioctl(abi::GNTDEV_COPY, &raw mut order) }
            .map(drop)
            .map_err(|e| Error::io(format!("copying {} pieces of grants", segments.len()), e))
    }
}

/// The status of an operation that the kernel would refuse together with its whole batch, or that it cannot do.
fn without_xen(op: &CopyOp<'_>) -> Option<i16> {
    let len = usize::from(op.len);
    let outside = |place: &CopyPtr<'_>| match place {
        CopyPtr::Grant { offset, .. } => usize::from(*offset) + len > PAGE_SIZE,
        CopyPtr::Memory(memory) => memory.len() < len,
    };
    if outside(&op.source) || outside(&op.dest) {
        return Some(BAD_COPY_ARG);
    }
    let (CopyPtr::Memory(source), CopyPtr::Memory(dest)) = (op.source, op.dest) else {
        return (len == 0).then_some(0);
    };
    let piece = source.subslice(0, len).ok()?;
    piece.copy_to_volatile_slice(dest);
    Some(0)
}

fn segment(op: &CopyOp<'_>) -> abi::Segment {
    let (source, from) = place(&op.source);
    let (dest, to) = place(&op.dest);
    let flags = if from { abi::SOURCE_GREF } else { 0 } | if to { abi::DEST_GREF } else { 0 };
    abi::Segment { source, dest, len: op.len, flags, status: 0 }
}

/// The bytes for a place, and whether it is a grant.
fn place(place: &CopyPtr<'_>) -> (abi::Place, bool) {
    match place {
        CopyPtr::Grant { domid, gref, offset } => {
            let foreign = abi::Foreign { gref: gref.0, offset: *offset, domid: domid.0 };
            (abi::Place { foreign }, true)
        }
        CopyPtr::Memory(memory) => (abi::Place { virt: memory.ptr_guard_mut().as_ptr().cast() }, false),
    }
}

/// The operation's end in memory, if it has one.
fn memory<'a>(op: &CopyOp<'a>) -> Option<VolatileSlice<'a>> {
    match (op.source, op.dest) {
        (CopyPtr::Memory(memory), _) | (_, CopyPtr::Memory(memory)) => Some(memory),
        _ => None,
    }
}
