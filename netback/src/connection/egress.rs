// Not a core: does I/O or calls a hypervisor.

//! Bridge to guest: frames fill the pages that the guest has posted, by one batch of grant copies a round, or pages of ours
//! that are flipped to the guest (`flip`).
//!
//! Each byte is copied once, from the page where the frame has it (which may be another guest's) to the page that the
//! receiving guest has or gets.
#![allow(unsafe_code)] // The copies' sources are named by address.

use super::flip::Flipper;
use super::round_result::RoundResult;
use crate::ExitReason;
use crate::assemble::Fault;
use crate::copy_batch::CopyBatch;
use crate::offload;
use crate::rx::{FrameInfo, PageFill, Placement, Rx};
use crate::stats::Stats;
use bridge::{DropReason, FragmentRef, Frame, Frames, Iovecs, Pin};
use grant_table::{Contiguous, CopyOp, CopyPtr, GrantTable, PageDonor, SharedSlice};
use inflight::InflightRegion;
use ring_abi::DomId;
use ring_abi::ring::Notify;
use std::io;
use std::sync::Arc;

/// The receive side of a vif.
pub(super) struct Egress {
    writer: Writer,
    rx: Rx<Contiguous, InflightRegion>,
    stats: Arc<Stats>,
    /// Responses were written since the last commit.
    dirty: bool,
    /// Buffers that the next frame needs, for which the guest had not posted enough.
    needed: u32,
}

/// Writes frames to the ring.
enum Writer {
    Copy(Copier),
    Flip(Flipper),
}

/// Copies frames into the pages that the guest has posted.
struct Copier {
    grants: Arc<dyn GrantTable>,
    placer: Placer,
    copies: CopyBatch,
}

/// Places frames in the pages that the guest has posted.
struct Placer {
    guest: DomId,
    /// The pages of the frame being placed.
    fills: Vec<PageFill>,
    /// For each copy, its frame's index in the round.
    owners: Vec<u16>,
}

impl Egress {
    /// For a guest whose requests grant pages.
    pub(super) fn copying(
        grants: Arc<dyn GrantTable>,
        guest: DomId,
        rx: Rx<Contiguous, InflightRegion>,
        stats: Arc<Stats>,
    ) -> Self {
        let placer = Placer { guest, fills: Vec::new(), owners: Vec::new() };
        let copier = Copier { grants, placer, copies: CopyBatch::default() };
        Self::new(Writer::Copy(copier), rx, stats)
    }

    /// For a guest whose requests accept pages.
    ///
    /// # Errors
    /// No eventfd could be created.
    pub(super) fn flipping(
        donor: Arc<dyn PageDonor>,
        guest: DomId,
        rx: Rx<Contiguous, InflightRegion>,
        stats: Arc<Stats>,
    ) -> io::Result<Self> {
        let flipper = Flipper::new(donor, guest, stats.clone())?;
        Ok(Self::new(Writer::Flip(flipper), rx, stats))
    }

    fn new(writer: Writer, rx: Rx<Contiguous, InflightRegion>, stats: Arc<Stats>) -> Self {
        Self { writer, rx, stats, dirty: false, needed: 1 }
    }

    /// Sends frames as far as the guest has posted buffers; returns how many were sent or dropped.
    pub(super) fn send(&mut self, frames: Frames<'_>) -> Result<usize, ExitReason> {
        let mut result = RoundResult::NOTHING;
        let written = match &mut self.writer {
            Writer::Copy(copier) => copier.write(&mut self.rx, frames.iter(), &mut result),
            Writer::Flip(flipper) => flipper.write(&mut self.rx, frames.iter(), &mut result),
        };
        // Frames that are too long take no slots.
        self.dirty |= result.taken > result.too_long;
        written?;
        self.count(result);
        self.needed = result.needed;
        Ok(result.taken)
    }

    /// Lends pages for a frame, if pages are flipped, as [`Flipper::lend`] does.
    pub(super) fn lend(&mut self, head_len: usize, into: &mut Iovecs) -> bool {
        match &mut self.writer {
            Writer::Copy(_) => false,
            Writer::Flip(flipper) => {
                let _ = flipper.lend(&mut self.rx, head_len, into);
                true
            }
        }
    }

    /// Keeps pages that were lent for a frame.
    pub(super) fn keep_lent(&mut self, pages: usize) -> Option<Pin> {
        match &mut self.writer {
            Writer::Copy(_) => None,
            Writer::Flip(flipper) => flipper.keep_lent(pages),
        }
    }

    /// Publishes responses; `None` if there are none.
    #[inline]
    pub(super) fn commit(&mut self) -> Option<Notify> {
        if let Writer::Flip(flipper) = &mut self.writer {
            flipper.reap();
        }
        std::mem::take(&mut self.dirty).then(|| self.rx.commit())
    }

    /// Requests an event for as many buffers as the next frame needs; `true` if there are as many already.
    pub(super) fn arm(&mut self) -> Result<bool, Fault> {
        self.rx.arm(self.needed)
    }

    /// Whether there are as many buffers as the next frame needs.
    pub(super) fn has_room(&mut self) -> Result<bool, Fault> {
        Ok(self.rx.posted()? >= self.needed)
    }

    fn count(&self, result: RoundResult) {
        let RoundResult { taken, bytes, copies, failed, too_long, .. } = result;
        self.stats.copied.add(copies as u64);
        self.stats.port.tx((taken - failed - too_long) as u64, bytes);
        self.stats.port.lost(DropReason::NoBuffer, failed as u64);
        self.stats.port.lost(DropReason::TooLong, too_long as u64);
    }
}

impl Copier {
    /// Places frames until the guest's buffers are used up, copies them and writes the responses.
    fn write<'f>(
        &mut self,
        rx: &mut Rx<Contiguous, InflightRegion>,
        frames: impl Iterator<Item = &'f Frame>,
        result: &mut RoundResult,
    ) -> Result<(), ExitReason> {
        let placer = &mut self.placer;
        let mut list = self.copies.start();
        let placed = placer.place(rx, frames, &mut list, result);
        let copied = list.submit(&*self.grants);
        let mut last = None;
        for (copy, owner) in list.iter().zip(&placer.owners) {
            if (copied.is_err() || !copy.status.is_okay()) && last != Some(*owner) {
                last = Some(*owner);
                result.failed += 1;
                rx.fail((*owner).into());
            }
        }
        result.copies = if copied.is_ok() { list.len() } else { 0 };
        rx.finish();
        placed?;
        Ok(copied?)
    }
}

impl Placer {
    /// Places frames until the guest's buffers are used up, and adds the copies that fill them.
    fn place<'f>(
        &mut self,
        rx: &mut Rx<Contiguous, InflightRegion>,
        frames: impl Iterator<Item = &'f Frame>,
        list: &mut Vec<CopyOp<'f>>,
        result: &mut RoundResult,
    ) -> Result<(), Fault> {
        self.owners.clear();
        for frame in frames {
            let info = offload::to_guest(frame);
            let placement = if frame.is_head_only() && info.gso.is_none() {
                self.place_head(rx, frame, info, list)?
            } else {
                self.place_pages(rx, frame, info, list)?
            };
            match placement {
                Placement::Wait => {
                    result.needed = info.slots() as u32;
                    break;
                }
                Placement::TooLong => result.too_long += 1,
                Placement::Frame(index) => {
                    result.bytes += frame.len() as u64;
                    self.owners.resize(list.len(), index as u16);
                }
            }
            result.taken += 1;
        }
        Ok(())
    }

    /// Places a frame that is all in its head, by one copy into one page.
    #[inline]
    fn place_head<'f>(
        &mut self,
        rx: &mut Rx<Contiguous, InflightRegion>,
        frame: &'f Frame,
        info: FrameInfo,
        list: &mut Vec<CopyOp<'f>>,
    ) -> Result<Placement, Fault> {
        let Some((fill, index)) = rx.place_page(info.len, info.flags)? else {
            return Ok(Placement::Wait);
        };
        let PageFill { gref, offset, len, .. } = fill;
        let dest = CopyPtr::Grant { domid: self.guest, gref, offset };
        list.extend(
            frame.fragments().next().map(|head| CopyOp::new(CopyPtr::Memory(shared_slice(head)), dest, len)),
        );
        Ok(Placement::Frame(index))
    }

    fn place_pages<'f>(
        &mut self,
        rx: &mut Rx<Contiguous, InflightRegion>,
        frame: &'f Frame,
        info: FrameInfo,
        list: &mut Vec<CopyOp<'f>>,
    ) -> Result<Placement, Fault> {
        self.fills.clear();
        let placement = rx.place(info, &mut self.fills)?;
        for fill in &self.fills {
            add_copies(self.guest, frame, *fill, list);
        }
        Ok(placement)
    }
}

/// Adds the copies that fill one page.
#[inline]
fn add_copies<'f>(guest: DomId, frame: &'f Frame, fill: PageFill, list: &mut Vec<CopyOp<'f>>) {
    let mut offset = fill.offset;
    for piece in frame.range(fill.frame_offset as usize, fill.len.into()) {
        let dest = CopyPtr::Grant { domid: guest, gref: fill.gref, offset };
        list.push(CopyOp::new(CopyPtr::Memory(shared_slice(piece)), dest, piece.len() as u16));
        offset += piece.len() as u16;
    }
}

#[inline]
fn shared_slice(piece: FragmentRef<'_>) -> SharedSlice<'_> {
    // SAFETY: the bytes are readable while the frame is borrowed. The slice is the source of a copy only, so that
    // nothing is written through it.
    unsafe { SharedSlice::new(piece.as_ptr().cast_mut(), piece.len()) }
}
