//! Guest to bridge: packets of the transmit ring become frames.
//!
//! The head (128 octets) of every packet of a round is copied by one batch of grant copies into the frames' private
//! memory and checked there; a payload beyond it stays where it is, mapped until the last frame that has it is gone.
#![allow(unsafe_code)] // Frames point into the guest's mapped pages.

use crate::assemble::{Fault, Packet, Part};
use crate::hold::Keeper;
use crate::offload;
use crate::ops::{self, Ops};
use crate::tx::Tx;
use arrayvec::ArrayVec;
use bridge::{Batch, Frame, HEAD, Reason, Seg, Stats};
use hypervisor::{Access, Contiguous, Copy, Hypervisor, Mapping, Place};
use ring_abi::netif::{SLOTS_FATAL, Status};
use ring_abi::ring::Notify;
use ring_abi::{DomId, GrantRef, PAGE_SIZE};
use std::io;
use std::os::fd::BorrowedFd;
use std::sync::Arc;

use super::Failed;

/// What is kept of a packet whose payload is still in use.
struct Kept {
    ids: ArrayVec<u16, SLOTS_FATAL>,
    extras: u8,
    /// Dropped, and so unmapped, before the guest is answered.
    mapping: Mapping,
}

/// A packet on its way through a round.
#[derive(Clone, Copy)]
struct Job {
    /// Its place in the round.
    packet: u16,
    /// Copies that fill its head.
    copies: u16,
}

/// The transmit side of a vif.
pub(super) struct Ingress {
    hv: Arc<dyn Hypervisor>,
    guest: DomId,
    tx: Tx<Contiguous>,
    keeper: Keeper<Kept>,
    stats: Arc<Stats>,
    jobs: Vec<Job>,
    ops: Ops,
    dirty: bool,
}

impl Ingress {
    pub(super) fn new(
        hv: Arc<dyn Hypervisor>,
        guest: DomId,
        ring: Contiguous,
        burst: usize,
        stats: Arc<Stats>,
    ) -> Result<Self, Failed> {
        let tx = Tx::attach(ring, burst)?;
        let keeper = Keeper::new(tx.slots() as u16)?;
        let (jobs, ops) = (Vec::with_capacity(burst), Ops::with_capacity(burst * 2));
        Ok(Self { hv, guest, tx, keeper, stats, jobs, ops, dirty: false })
    }

    /// Answers packets whose payload nobody uses any more.
    #[inline]
    pub(super) fn reap(&mut self) {
        while let Some(Kept { ids, extras, mapping }) = self.keeper.reap() {
            drop(mapping);
            self.tx.answer_kept(&ids, extras, Status::OKAY);
            self.dirty = true;
        }
    }

    /// Puts the next packets into `into`, as many as it has room for.
    pub(super) fn recv(&mut self, into: &mut Batch) -> Result<(), Failed> {
        let start = into.len();
        let count = self.tx.poll(into.room())?.len();
        if count == 0 {
            return Ok(());
        }
        self.dirty = true;
        self.admit(count, into);
        let copied = self.copy_heads(&mut into.frames_mut()[start..]);
        let bad = self.finish(&mut into.frames_mut()[start..]);
        if bad {
            into.retain(|frame| !frame.is_empty());
        }
        let octets = into.frames()[start..].iter().map(|frame| frame.len() as u64).sum();
        self.stats.rx((into.len() - start) as u64, octets);
        copied
    }

    /// Gives every packet that is not refused a frame with an empty head of the right length.
    fn admit(&mut self, count: usize, into: &mut Batch) {
        self.jobs.clear();
        for place in 0..count {
            let packet = self.tx.packet(place);
            if packet.refusal().is_some() {
                self.stats.lost(Reason::Malformed, 1);
                self.tx.answer(place, Status::ERROR);
                continue;
            }
            // There is room for as many as were polled.
            if let Some(frame) = into.slot() {
                frame.fill_head(packet.size().min(HEAD));
                self.jobs.push(Job { packet: place as u16, copies: 0 });
            }
        }
    }

    /// Copies all heads at once. Which of the copies failed is in `jobs`: their frames are emptied.
    fn copy_heads(&mut self, frames: &mut [Frame]) -> Result<(), Failed> {
        let mut list = self.ops.lend();
        for (job, frame) in self.jobs.iter_mut().zip(&mut *frames) {
            let before = list.len();
            pull(self.guest, self.tx.packet(job.packet.into()).parts(), frame.head_mut(), &mut list);
            job.copies = (list.len() - before) as u16;
        }
        let made = ops::run(&*self.hv, &mut list);
        let mut at = 0;
        for job in &mut self.jobs {
            let mine = &list[at..at + usize::from(job.copies)];
            at += mine.len();
            // From here on it says how many failed.
            job.copies = mine.iter().filter(|copy| made.is_err() || copy.status != 0).count() as u16;
        }
        self.ops.keep(list);
        Ok(made?)
    }

    /// Attaches payloads, reads headers and answers what is complete; `true` if any frame was emptied.
    fn finish(&mut self, frames: &mut [Frame]) -> bool {
        let mut bad = false;
        for (job, frame) in self.jobs.iter().zip(frames) {
            let place = usize::from(job.packet);
            let packet = self.tx.packet(place);
            let attached = job.copies == 0 && {
                let whole = packet.size() <= HEAD;
                whole || attach(&*self.hv, self.guest, packet, &mut self.keeper, frame)
            };
            if !attached {
                bad = true;
                frame.clear();
                self.stats.lost(Reason::Malformed, 1);
                self.tx.answer(place, Status::ERROR);
                continue;
            }
            if offload::from_guest(packet, frame).is_err() {
                bad = true;
                frame.clear();
                self.stats.lost(Reason::Malformed, 1);
            }
            // A frame that is its head needs the guest's pages no more; the others are answered when reaped.
            if packet.size() <= HEAD {
                self.tx.answer(place, Status::OKAY);
            }
        }
        bad
    }

    /// Publishes answers.
    #[inline]
    pub(super) fn commit(&mut self) -> Notify {
        if std::mem::take(&mut self.dirty) { self.tx.commit() } else { Notify::No }
    }

    /// Asks to be woken by requests, and by pages let go of; `true` if there are some already.
    pub(super) fn arm(&mut self) -> Result<bool, Fault> {
        Ok(self.tx.arm()? | self.keeper.arm())
    }

    /// Readable once pages were let go of.
    pub(super) fn fd(&self) -> BorrowedFd<'_> {
        self.keeper.fd()
    }
}

/// Adds the copies that fill `head` from the packet's first octets; the octets of one part never cross a page.
#[inline]
fn pull<'a>(guest: DomId, parts: &[Part], mut head: &'a mut [u8], list: &mut Vec<Copy<'a>>) {
    for part in parts {
        if head.is_empty() {
            return;
        }
        let len = usize::from(part.size).min(head.len());
        let (now, rest) = std::mem::take(&mut head).split_at_mut(len);
        head = rest;
        if len > 0 {
            let source = Place::Grant { domid: guest, gref: part.gref, offset: part.offset };
            list.push(Copy::new(source, Place::Memory(now.into()), len as u16));
        }
    }
}

/// Maps what follows the head and lets the frame point to it; `false` if it cannot be mapped.
fn attach(
    hv: &dyn Hypervisor,
    guest: DomId,
    packet: &Packet,
    keeper: &mut Keeper<Kept>,
    frame: &mut Frame,
) -> bool {
    let mut grefs: ArrayVec<GrantRef, SLOTS_FATAL> = ArrayVec::new();
    grefs.extend(body(packet).map(|part| part.gref));
    let Ok(mapping) = hv.map(guest, &grefs, Access::ReadOnly) else { return false };
    let kept = Kept { ids: packet.ids().iter().copied().collect(), extras: packet.extras(), mapping };
    let Ok((pin, Kept { mapping, .. })) = keeper.keep(kept) else { return false };
    frame.pin(pin);
    for (page, part) in body(packet).enumerate() {
        debug_assert!(usize::from(part.offset) + usize::from(part.size) <= PAGE_SIZE);
        let start = mapping.base(page).as_ptr().wrapping_add(part.offset.into());
        // SAFETY: the part lies in its page (checked when it was assembled), which stays mapped until the
        // keeper gives the mapping back: after the last clone of the frame's pin.
        let seg = unsafe { Seg::new(start, part.size.into()) };
        // 18 parts at most: a frame has room for 20.
        let _ = frame.push(seg);
    }
    true
}

/// The parts beyond the head, the first one shortened by what the head has of it.
fn body(packet: &Packet) -> impl Iterator<Item = Part> {
    let mut skip = HEAD as u16;
    packet.parts().iter().filter_map(move |part| {
        let skipped = skip.min(part.size);
        skip -= skipped;
        let rest = Part { offset: part.offset + skipped, size: part.size - skipped, ..*part };
        (rest.size > 0).then_some(rest)
    })
}

impl From<ring_abi::ring::BadMemory> for Failed {
    fn from(error: ring_abi::ring::BadMemory) -> Self {
        Self::Ours(io::Error::other(error))
    }
}
