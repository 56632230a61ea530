//! Grant copy through `/dev/xen/gntdev`: Xen copies, nothing is mapped.
#![allow(unsafe_code)] // Structures for the ioctl, with pointers to this process's memory.

use super::abi;
use super::gntdev::Gntdev;
use crate::error::{Error, Result};
use grant_table::{CopyOp, CopyPtr, SharedSlice};
use ring_abi::grant::{CopyFlags, Status};
use ring_abi::{DomId, GrantRef, PAGE_SIZE};
use smallvec::SmallVec;
use vm_memory::VolatileSlice;

/// Operations submitted without allocating: more than the slots of the largest packet, and as many as blkback submits.
const INLINE_OPS: usize = 32;

impl Gntdev {
    /// Carries out `ops`; sets the status of each.
    pub(super) fn copy(&self, ops: &mut [CopyOp<'_>]) -> Result<()> {
        let mut segments: SmallVec<[abi::CopySegment; INLINE_OPS]> = SmallVec::new();
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
                Status::BAD_PAGE if memory(op).is_some() => self.copy_bounced(op)?,
                status => status,
            };
        }
        Ok(())
    }

    /// Reads one byte of a granted page; returns the status.
    pub(super) fn read_byte(&self, peer: DomId, gref: GrantRef) -> Result<Status> {
        let mut byte = [0u8];
        let source = CopyPtr::Grant { domid: peer, gref, offset: 0 };
        let mut op = CopyOp::new(source, CopyPtr::Memory(SharedSlice::from(&mut byte[..])), 1);
        self.copy(std::slice::from_mut(&mut op))?;
        Ok(op.status)
    }

    /// Copies through a local buffer, where an operation's memory is a mapped page of another domain: Xen refuses
    /// frames that the caller does not own ([`Status::BAD_PAGE`]).
    fn copy_bounced(&self, op: &CopyOp<'_>) -> Result<Status> {
        let mut buffer = [0u8; PAGE_SIZE];
        let buffer = SharedSlice::from(&mut buffer[..usize::from(op.len)]);
        if let CopyPtr::Memory(memory) = op.source {
            copy_memory(memory, buffer);
            return self.copy_one(CopyPtr::Memory(buffer), op.dest, op.len);
        }
        let status = self.copy_one(op.source, CopyPtr::Memory(buffer), op.len)?;
        if let CopyPtr::Memory(memory) = op.dest
            && status.is_okay()
        {
            copy_memory(buffer, memory);
        }
        Ok(status)
    }

    fn copy_one(&self, source: CopyPtr<'_>, dest: CopyPtr<'_>, len: u16) -> Result<Status> {
        let mut only = [segment(&CopyOp::new(source, dest, len))];
        self.submit(&mut only)?;
        Ok(only[0].status)
    }

    fn submit(&self, segments: &mut [abi::CopySegment]) -> Result<()> {
        if segments.is_empty() {
            return Ok(());
        }
        let mut argument = abi::GrantCopy { count: segments.len() as u32, segments: segments.as_mut_ptr() };
        // SAFETY: `count` segments, each of which names grants or memory of at least `len` bytes, borrowed by the
        // `CopyOp` of the segment.
        unsafe { self.node.ioctl(abi::GNTDEV_COPY, &raw mut argument) }
            .map(drop)
            .map_err(|e| Error::io(format!("copy {} segments of grants", segments.len()), e))
    }
}

/// Completes an operation that gntdev would refuse together with its whole batch, or that needs no hypercall; `None`
/// for all others.
fn without_xen(op: &CopyOp<'_>) -> Option<Status> {
    let len = usize::from(op.len);
    let outside = |end: &CopyPtr<'_>| match end {
        CopyPtr::Grant { offset, .. } => usize::from(*offset) + len > PAGE_SIZE,
        CopyPtr::Memory(memory) => memory.len() < len,
    };
    if outside(&op.source) || outside(&op.dest) {
        return Some(Status::BAD_COPY_ARG);
    }
    let (CopyPtr::Memory(source), CopyPtr::Memory(dest)) = (op.source, op.dest) else {
        return (len == 0).then_some(Status::OKAY);
    };
    copy_memory(source.subslice(0, len)?, dest);
    Some(Status::OKAY)
}

/// Copies between memories of this process, each of which may be another domain's mapped page.
fn copy_memory(from: SharedSlice<'_>, to: SharedSlice<'_>) {
    VolatileSlice::from(from).copy_to_volatile_slice(to.into());
}

fn segment(op: &CopyOp<'_>) -> abi::CopySegment {
    let (source, from_grant) = copy_end(&op.source);
    let (dest, to_grant) = copy_end(&op.dest);
    let mut flags = CopyFlags::empty();
    flags.set(CopyFlags::SOURCE_GREF, from_grant);
    flags.set(CopyFlags::DEST_GREF, to_grant);
    abi::CopySegment { source, dest, len: op.len, flags: flags.bits(), status: Status::OKAY }
}

/// The union of one end of a copy, and whether it is a grant.
fn copy_end(end: &CopyPtr<'_>) -> (abi::CopyEnd, bool) {
    match end {
        CopyPtr::Grant { domid, gref, offset } => {
            let foreign = abi::Foreign { gref: *gref, offset: *offset, domid: *domid };
            (abi::CopyEnd { foreign }, true)
        }
        CopyPtr::Memory(memory) => (abi::CopyEnd { virt: memory.as_ptr().cast() }, false),
    }
}

/// The source or the destination of an operation, whichever is memory.
fn memory<'a>(op: &CopyOp<'a>) -> Option<SharedSlice<'a>> {
    match (op.source, op.dest) {
        (CopyPtr::Memory(memory), _) | (_, CopyPtr::Memory(memory)) => Some(memory),
        _ => None,
    }
}
