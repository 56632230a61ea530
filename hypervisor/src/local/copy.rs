//! `GNTTABOP_copy`: batches of copies between granted pages and memory.
//!
//! A page is pinned while it is copied, so that its owner's revoking the grant meanwhile is noticed by its owner
//! and does no harm. Operations on the same page that follow each other share one pin.
#![allow(unsafe_code)] // Copies between memories that peers write.

use super::entry::BAD_COPY;
use super::peers::Known;
use super::remote::Remote;
use crate::{Copy, Place};
use ring_abi::{DomId, GrantRef, PAGE_SIZE};
use std::ptr::NonNull;

/// `GNTST_bad_domain`.
pub(super) const BAD_DOMAIN: i16 = -2;

/// A page that stays pinned until another one is needed.
struct Pinned<'a> {
    owner: &'a Remote,
    gref: GrantRef,
    base: NonNull<u8>,
    write: bool,
}

impl Drop for Pinned<'_> {
    fn drop(&mut self) {
        self.owner.unpin(self.gref, self.write);
    }
}

/// One end of the copies of a batch.
struct End<'a> {
    known: &'a Known,
    me: DomId,
    write: bool,
    pinned: Option<Pinned<'a>>,
}

impl<'a> End<'a> {
    /// Address of an end of a copy, which stays valid until the next call or drop.
    #[inline]
    fn address(&mut self, place: &Place<'_>, len: usize) -> Result<*mut u8, i16> {
        match place {
            Place::Memory(memory) if memory.len() >= len => Ok(memory.ptr_guard_mut().as_ptr()),
            Place::Grant { domid, gref, offset } if *offset as usize + len <= PAGE_SIZE => {
                let base = self.pin(*domid, *gref)?;
                // SAFETY: inside the page by the guard.
                Ok(unsafe { base.as_ptr().add(*offset as usize) })
            }
            _ => Err(BAD_COPY),
        }
    }

    #[inline]
    fn pin(&mut self, domid: DomId, gref: GrantRef) -> Result<NonNull<u8>, i16> {
        let domid = if domid == DomId::SELF { self.me } else { domid };
        match &self.pinned {
            Some(pinned) if pinned.gref == gref && pinned.owner.owner == domid => return Ok(pinned.base),
            _ => self.pinned = None,
        }
        let owner: &Remote = self.known.get(domid).ok_or(BAD_DOMAIN)?;
        let base = owner.pin(gref, self.write)?;
        self.pinned = Some(Pinned { owner, gref, base, write: self.write });
        Ok(base)
    }
}

/// Makes every copy of a batch that can be made, between pages of the arenas `known`.
pub(super) fn copy(known: &Known, me: DomId, ops: &mut [Copy<'_>]) {
    let mut source = End { known, me, write: false, pinned: None };
    let mut dest = End { known, me, write: true, pinned: None };
    for op in ops {
        op.status = match one(&mut source, &mut dest, op) {
            Ok(()) => 0,
            Err(status) => status,
        };
    }
}

#[inline]
fn one(source: &mut End<'_>, dest: &mut End<'_>, op: &Copy<'_>) -> Result<(), i16> {
    let len = usize::from(op.len);
    let from = source.address(&op.source, len)?;
    let to = dest.address(&op.dest, len)?;
    // SAFETY: `len` octets each, of pinned pages or of memory that the caller lent as `VolatileSlice`, whose contract
    // is that others may write to it meanwhile; the two may overlap.
    unsafe { std::ptr::copy(from, to, len) };
    Ok(())
}
