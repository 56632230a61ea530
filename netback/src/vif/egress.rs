//! Bridge to guest: frames fill the pages that the guest has posted, by one batch of grant copies a round.
//!
//! From whatever page an byte lies in, another guest's among them, it is copied once: into the receiving guest's.
#![allow(unsafe_code)] // The copies' sources are named by address.

use crate::assemble::Fault;
use crate::backlog::Backlog;
use crate::offload;
use crate::ops::{self, Ops};
use crate::rx::{Fill, Placed, Rx, Shape};
use bridge::{FragmentRef, Frame, Frames, Reason, Stats};
use hypervisor::{Contiguous, CopyOp, CopyPtr, Hypervisor, InflightRegion};
use ring_abi::DomId;
use ring_abi::ring::Notify;
use std::sync::Arc;
use std::time::Instant;
use vm_memory::VolatileSlice;

use super::Failed;

/// The receive side of a vif.
pub(super) struct Egress {
    writer: Writer,
    backlog: Backlog,
    stats: Arc<Stats>,
}

/// What puts frames into the ring, without what queues them.
struct Writer {
    hv: Arc<dyn Hypervisor>,
    guest: DomId,
    rx: Rx<Contiguous, InflightRegion>,
    fills: Vec<Fill>,
    ops: Ops,
    /// For each copy, its frame's number in the round.
    owners: Vec<u16>,
    dirty: bool,
}

/// What became of a round.
#[derive(Clone, Copy, Default)]
struct Sent {
    /// Frames that are done with, whatever became of them.
    taken: usize,
    bytes: u64,
    /// Of `taken`, those with a bad page, and those that no number of pages would hold.
    failed: usize,
    too_long: usize,
}

impl Egress {
    pub(super) fn new(
        hv: Arc<dyn Hypervisor>,
        guest: DomId,
        rx: Rx<Contiguous, InflightRegion>,
        backlog: Backlog,
        stats: Arc<Stats>,
    ) -> Self {
        let (fills, ops, owners) = (Vec::new(), Ops::default(), Vec::new());
        let writer = Writer { hv, guest, rx, fills, ops, owners, dirty: false };
        Self { writer, backlog, stats }
    }

    /// Sends frames, or queues what the guest has no buffers for.
    pub(super) fn send(&mut self, frames: Frames<'_>) -> Result<(), Failed> {
        self.drain()?;
        let mut taken = 0;
        if self.backlog.is_empty() {
            let sent = self.writer.write(frames.iter())?;
            self.count(sent);
            taken = sent.taken;
        }
        if taken < frames.len() {
            let now = Instant::now();
            let rest = frames.iter().skip(taken);
            let dropped = rest.filter(|frame| !self.backlog.push(frame, now)).count();
            self.stats.lost(Reason::NoRoom, dropped as u64);
        }
        Ok(())
    }

    /// Sends what waits, as far as the guest has posted buffers since; drops it if the guest has stalled. `true` if
    /// there was anything to do.
    #[inline]
    pub(super) fn drain(&mut self) -> Result<bool, Failed> {
        if self.backlog.is_stalled() && self.writer.rx.posted()? > 0 {
            self.backlog.revive();
        }
        if self.backlog.is_empty() { Ok(false) } else { self.drain_some() }
    }

    fn drain_some(&mut self) -> Result<bool, Failed> {
        let now = Instant::now();
        let sent = self.writer.write(self.backlog.iter())?;
        self.count(sent);
        if sent.taken > 0 {
            self.backlog.taken(sent.taken, now);
        }
        let expired = self.backlog.expire(now);
        self.stats.lost(Reason::NoRoom, expired as u64);
        Ok(sent.taken > 0)
    }

    /// Publishes responses.
    #[inline]
    pub(super) fn commit(&mut self) -> Notify {
        if std::mem::take(&mut self.writer.dirty) { self.writer.rx.commit() } else { Notify::No }
    }

    /// Asks to be woken by buffers if frames wait for some; `true` if there are new ones already.
    pub(super) fn arm(&mut self) -> Result<bool, Fault> {
        if self.backlog.is_empty() && !self.backlog.is_stalled() {
            return Ok(false);
        }
        self.writer.rx.arm()
    }

    /// Drops what waits.
    pub(super) fn close(&mut self) {
        let dropped = self.backlog.clear();
        self.stats.lost(Reason::Down, dropped as u64);
    }

    fn count(&self, sent: Sent) {
        let Sent { taken, bytes, failed, too_long } = sent;
        self.stats.tx((taken - failed - too_long) as u64, bytes);
        self.stats.lost(Reason::NoBuffer, failed as u64);
        self.stats.lost(Reason::TooLong, too_long as u64);
    }
}

impl Writer {
    /// Places frames until the guest's buffers end, copies them and writes the responses.
    fn write<'f>(&mut self, frames: impl Iterator<Item = &'f Frame>) -> Result<Sent, Failed> {
        let mut sent = Sent::default();
        let mut list = self.ops.lend();
        let placed = self.place(frames, &mut list, &mut sent);
        let copied = ops::run(&*self.hv, &mut list);
        let mut last = None;
        for (copy, owner) in list.iter().zip(&self.owners) {
            if (copied.is_err() || copy.status != 0) && last != Some(*owner) {
                last = Some(*owner);
                sent.failed += 1;
                self.rx.fail((*owner).into());
            }
        }
        self.ops.keep(list);
        self.rx.finish();
        self.dirty |= sent.taken > 0;
        placed?;
        copied?;
        Ok(sent)
    }

    fn place<'f>(
        &mut self,
        frames: impl Iterator<Item = &'f Frame>,
        list: &mut Vec<CopyOp<'f>>,
        sent: &mut Sent,
    ) -> Result<(), Fault> {
        self.owners.clear();
        for frame in frames {
            let shape = offload::to_guest(frame);
            let placed = if frame.is_head_only() && shape.gso.is_none() {
                self.place_head(frame, shape, list)?
            } else {
                self.place_pages(frame, shape, list)?
            };
            match placed {
                Placed::Wait => break,
                Placed::TooLong => sent.too_long += 1,
                Placed::Frame(number) => {
                    sent.bytes += frame.len() as u64;
                    self.owners.resize(list.len(), number as u16);
                }
            }
            sent.taken += 1;
        }
        Ok(())
    }

    /// A frame that is all head: one copy into one page.
    #[inline]
    fn place_head<'f>(
        &mut self,
        frame: &'f Frame,
        shape: Shape,
        list: &mut Vec<CopyOp<'f>>,
    ) -> Result<Placed, Fault> {
        let Some((Fill { gref, offset, len, .. }, number)) = self.rx.place_page(shape.len, shape.flags)?
        else {
            return Ok(Placed::Wait);
        };
        let dest = CopyPtr::Grant { domid: self.guest, gref, offset };
        list.extend(
            frame.fragments().next().map(|head| CopyOp::new(CopyPtr::Memory(volatile(head)), dest, len)),
        );
        Ok(Placed::Frame(number))
    }

    fn place_pages<'f>(
        &mut self,
        frame: &'f Frame,
        shape: Shape,
        list: &mut Vec<CopyOp<'f>>,
    ) -> Result<Placed, Fault> {
        self.fills.clear();
        let placed = self.rx.place(shape, &mut self.fills)?;
        for fill in &self.fills {
            copies(self.guest, frame, *fill, list);
        }
        Ok(placed)
    }
}

/// Adds the copies that fill one page.
#[inline]
fn copies<'f>(guest: DomId, frame: &'f Frame, fill: Fill, list: &mut Vec<CopyOp<'f>>) {
    let mut offset = fill.offset;
    for piece in frame.range(fill.at as usize, fill.len.into()) {
        let dest = CopyPtr::Grant { domid: guest, gref: fill.gref, offset };
        list.push(CopyOp::new(CopyPtr::Memory(volatile(piece)), dest, piece.len() as u16));
        offset += piece.len() as u16;
    }
}

#[inline]
fn volatile(piece: FragmentRef<'_>) -> VolatileSlice<'_> {
    // SAFETY: readable while the frame is borrowed, as every piece of it is; it is a copy's source only, so that
    // nobody writes through it.
    unsafe { VolatileSlice::new(piece.as_ptr().cast_mut(), piece.len()) }
}
