//! `GNTTABOP_copy`: batches of copies between granted pages and memory.
//!
//! Pages are pinned while they are copied, so that an owner that revokes a grant meanwhile sees it in use. Sources
//! are pinned first, then destinations, so that at most one peer's lock is held, and only while pins change;
//! consecutive operations on the same page share one pin.
#![allow(unsafe_code)] // Copies between memories that peers write.

use super::peer_slot::{Arenas, PeerSlot};
use super::peer_slots::PeerSlots;
use grant_table::{CopyOp, CopyPtr};
use ring_abi::grant::Status;
use ring_abi::{DomId, GrantRef, PAGE_SIZE};
use spin::mutex::SpinMutexGuard;
use spin::relax::Yield;
use std::ptr;

/// Operations whose pages are pinned at the same time.
const CHUNK: usize = 32;

/// A pinned page, to be unpinned after the copy.
#[derive(Clone, Copy)]
struct Pin {
    domid: DomId,
    gref: GrantRef,
    generation: u32,
}

/// The source or the destination of each copy of a chunk.
struct Ends {
    at: [*mut u8; CHUNK],
    pins: [Option<Pin>; CHUNK],
}

/// The peer whose lock is held.
struct Locked<'a> {
    slot: &'a PeerSlot,
    arenas: SpinMutexGuard<'a, Arenas, Yield>,
}

/// Holds the lock of `domid`'s arenas, and no other.
#[inline]
fn lock<'g, 'a>(
    peers: &'a PeerSlots,
    held: &'g mut Option<Locked<'a>>,
    domid: DomId,
) -> Option<&'g mut Arenas> {
    if held.as_ref().is_none_or(|locked| locked.slot.owner != domid) {
        // Released before the other is acquired.
        *held = None;
        let slot = peers.slot(domid)?;
        *held = Some(Locked { slot, arenas: slot.lock() });
    }
    held.as_mut().map(|locked| &mut *locked.arenas)
}

/// Tries every copy of a batch for domain `me`.
pub(super) fn copy(peers: &PeerSlots, me: DomId, ops: &mut [CopyOp<'_>]) {
    for chunk in ops.chunks_mut(CHUNK) {
        chunk.iter_mut().for_each(|op| op.status = Status::OKAY);
        let sources = pin(peers, me, chunk, false);
        let dests = pin(peers, me, chunk, true);
        for (n, op) in chunk.iter().enumerate().filter(|(_, op)| op.status.is_okay()) {
            // SAFETY: both ends were checked to have `len` bytes, in pages that stay pinned or in memory that the
            // caller passed as `SharedSlice`, whose contract is that others may write to it.
            unsafe { shared_copy::copy(sources.at[n], dests.at[n], usize::from(op.len)) };
        }
        unpin(peers, &sources, false);
        unpin(peers, &dests, true);
    }
}

/// Resolves the source (or, if `write`, the destination) of each copy, and pins its page if it is a grant. Sets the
/// status of operations that fail.
fn pin(peers: &PeerSlots, me: DomId, ops: &mut [CopyOp<'_>], write: bool) -> Ends {
    let mut ends = Ends { at: [ptr::null_mut(); CHUNK], pins: [None; CHUNK] };
    let mut held = None;
    let mut last: Option<(Pin, *mut u8)> = None;
    for (n, op) in ops.iter_mut().enumerate() {
        let len = usize::from(op.len);
        let place = if write { &op.dest } else { &op.source };
        let found = match place {
            CopyPtr::Memory(memory) if memory.len() >= len => Ok(memory.as_ptr()),
            CopyPtr::Grant { domid, gref, offset } if usize::from(*offset) + len <= PAGE_SIZE => {
                let domid = if *domid == DomId::SELF { me } else { *domid };
                let page = match last {
                    Some((pin, page)) if pin.gref == *gref && pin.domid == domid => Ok(page),
                    _ => pin_page(peers, &mut held, domid, *gref, write).map(|(pin, page)| {
                        ends.pins[n] = Some(pin);
                        last = Some((pin, page));
                        page
                    }),
                };
                page.map(|page| page.wrapping_add(usize::from(*offset)))
            }
            _ => Err(Status::BAD_COPY_ARG),
        };
        match found {
            Ok(at) => {
                // Pinning waits for every earlier store: the lines are fetched while other pages are pinned.
                if matches!(place, CopyPtr::Grant { .. }) {
                    prefetch(at, write);
                }
                ends.at[n] = at;
            }
            Err(status) if op.status.is_okay() => op.status = status,
            Err(_) => {}
        }
    }
    ends
}

/// Starts to fetch the cache line at an address, which need not be valid, for reading or writing.
#[inline]
fn prefetch(at: *const u8, write: bool) {
    #[cfg(all(target_arch = "x86_64", not(miri)))]
    // SAFETY: a hint, which never faults and changes no register; processors without `prefetchw` execute it as a
    // no-op.
    unsafe {
        if write {
            std::arch::asm!("prefetchw [{}]", in(reg) at, options(nostack, preserves_flags, readonly));
        } else {
            std::arch::asm!("prefetcht0 [{}]", in(reg) at, options(nostack, preserves_flags, readonly));
        }
    }
    let _ = (at, write);
}

#[inline]
fn pin_page<'a>(
    peers: &'a PeerSlots,
    held: &mut Option<Locked<'a>>,
    domid: DomId,
    gref: GrantRef,
    write: bool,
) -> Result<(Pin, *mut u8), Status> {
    let remote = lock(peers, held, domid).and_then(Arenas::live).ok_or(Status::BAD_DOMAIN)?;
    let base = remote.pin(gref, write)?;
    Ok((Pin { domid, gref, generation: remote.generation }, base.as_ptr()))
}

fn unpin(peers: &PeerSlots, ends: &Ends, write: bool) {
    let mut held = None;
    for pin in ends.pins.iter().flatten() {
        let arenas = lock(peers, &mut held, pin.domid);
        if let Some(arenas) = arenas
            && let Some(remote) = arenas.find(pin.generation)
        {
            remote.unpin(pin.gref, write);
            arenas.unmap_retired();
        }
    }
}
