// Not a core: does I/O or calls a hypervisor.

//! Bridge to guest by page flipping: frames fill pages that this domain owns, and these become the guest's. A frame that came by
//! a wire may be in such pages already (`lent`).
//!
//! The pages are those that the guest has given up, so that a guest that gives up none loses its frames, each answered with
//! an error, and takes nothing of anybody else's. What is beside a frame in its pages is zeroed: a page is handed over with
//! the bytes of the frame and no others.
#![allow(unsafe_code)] // Fills pages that the former owner may still write to.

use super::lent::{self, Lent};
use super::round_result::RoundResult;
use crate::ExitReason;
use crate::offload;
use crate::rx::{PageFill, Placement, Rx};
use crate::stats::Stats;
use bridge::{Frame, Iovecs, Pin};
use grant_table::flip::Sender;
use grant_table::{Contiguous, OwnedPage, PageDonor};
use inflight::InflightRegion;
use ring_abi::{DomId, PAGE_SIZE};
use std::io;
use std::sync::Arc;

/// Pages that are taken over at once, so that the guest's queue is read rarely.
const REFILL: usize = 64;

/// Flips frames to one guest.
pub(super) struct Flipper {
    sender: Sender,
    /// Pages that frames were received into.
    lent: Lent,
    /// The pages of the frame being placed.
    fills: Vec<PageFill>,
    /// For each page of the batch, its frame's index in the round.
    owners: Vec<u16>,
    stats: Arc<Stats>,
}

impl Flipper {
    /// # Errors
    /// No eventfd could be created.
    pub(super) fn new(donor: Arc<dyn PageDonor>, guest: DomId, stats: Arc<Stats>) -> io::Result<Self> {
        let sender = Sender::new(donor, guest);
        Ok(Self { sender, lent: Lent::new()?, fills: Vec::new(), owners: Vec::new(), stats })
    }

    /// Lends pages for a frame whose head is `head_len` bytes, if the guest has a request for each, and for those in which frames
    /// are already.
    pub(super) fn lend(
        &mut self,
        rx: &mut Rx<Contiguous, InflightRegion>,
        head_len: usize,
        into: &mut Iovecs,
    ) -> Result<(), ExitReason> {
        let needed = self.lent.pages() + lent::PAGES;
        if rx.untaken() < needed && (rx.posted()? as usize) < needed {
            return Ok(());
        }
        if self.refill(lent::PAGES, rx.untaken())? {
            Lent::offer(&self.sender, head_len, into);
        }
        Ok(())
    }

    /// Keeps pages that were lent for a frame.
    pub(super) fn keep_lent(&mut self, pages: usize) -> Option<Pin> {
        self.lent.keep(&mut self.sender, pages)
    }

    /// Releases the pages of frames that are dropped.
    #[inline]
    pub(super) fn reap(&mut self) {
        self.lent.reap();
    }

    /// Takes pages over until there are `needed`, and more if there are more requests; `false` if the guest has given up too few.
    #[inline]
    fn refill(&mut self, needed: usize, requests: usize) -> Result<bool, ExitReason> {
        let before = self.sender.available();
        if before >= needed {
            return Ok(true);
        }
        let most = requests.min(needed.max(REFILL));
        let available = self.sender.refill(needed, most)?;
        self.stats.returned.add((available - before) as u64);
        Ok(available >= needed)
    }

    /// Places frames until the guest's requests are used up, fills pages with them, transfers the pages and writes the
    /// responses.
    pub(super) fn write<'f>(
        &mut self,
        rx: &mut Rx<Contiguous, InflightRegion>,
        frames: impl Iterator<Item = &'f Frame>,
        result: &mut RoundResult,
    ) -> Result<(), ExitReason> {
        self.owners.clear();
        let placed = self.place(rx, frames, result);
        let transferred = self.transfer(rx, result);
        rx.finish();
        placed.and(transferred)
    }

    fn place<'f>(
        &mut self,
        rx: &mut Rx<Contiguous, InflightRegion>,
        frames: impl Iterator<Item = &'f Frame>,
        result: &mut RoundResult,
    ) -> Result<(), ExitReason> {
        for frame in frames {
            let info = offload::to_guest(frame);
            self.fills.clear();
            match rx.place(info, &mut self.fills)? {
                Placement::Wait => {
                    result.needed = info.slots() as u32;
                    break;
                }
                Placement::TooLong => result.too_long += 1,
                Placement::Frame(index) => {
                    if self.fill(frame, rx.untaken())? {
                        result.bytes += frame.len() as u64;
                        self.owners.resize(self.owners.len() + self.fills.len(), index as u16);
                    } else {
                        // The response tells the guest, which makes up for pages that an earlier process of ours had.
                        rx.fail(index);
                        result.failed += 1;
                    }
                }
            }
            result.taken += 1;
        }
        Ok(())
    }

    /// Fills a page for each of the frame's requests, unless it is in pages that were lent for it; `false`, and nothing done, if the guest has given up too few.
    /// `untaken` requests may follow.
    fn fill(&mut self, frame: &Frame, untaken: usize) -> Result<bool, ExitReason> {
        let needed = self.fills.len();
        if self.lent.send(frame, &self.fills, &mut self.sender) {
            self.stats.direct.add(needed as u64);
            return Ok(true);
        }
        if !self.refill(needed, needed + untaken)? {
            return Ok(false);
        }
        for fill in &self.fills {
            let Some(page) = self.sender.page() else { return Ok(false) };
            write_page(&page, frame, fill);
            self.sender.add(page, fill.gref);
        }
        Ok(true)
    }

    /// Transfers the batch's pages. A frame of which the guest does not accept a page is answered with an error.
    fn transfer(
        &mut self,
        rx: &mut Rx<Contiguous, InflightRegion>,
        result: &mut RoundResult,
    ) -> Result<(), ExitReason> {
        let mut owners = self.owners.iter();
        let mut last = None;
        let mut flipped = 0;
        let mut refused = 0;
        self.sender.flush(|_, status| {
            let Some(owner) = owners.next() else { return };
            if status.is_okay() {
                flipped += 1;
                return;
            }
            refused += 1;
            if last.replace(*owner) != Some(*owner) {
                result.failed += 1;
                rx.fail((*owner).into());
            }
        })?;
        self.stats.flipped.add(flipped);
        self.stats.refused.add(refused);
        Ok(())
    }
}

/// Writes a part of a frame into a page, and zeroes the rest of the page.
#[inline]
fn write_page(page: &OwnedPage, frame: &Frame, fill: &PageFill) {
    let start = usize::from(fill.offset);
    let end = start + usize::from(fill.len);
    let Some(whole) = page.slice(0, PAGE_SIZE) else { return };
    let base = whole.as_ptr();
    let mut at = start;
    for piece in frame.range(fill.frame_offset as usize, fill.len.into()) {
        // SAFETY: the pieces are `fill.len` bytes in all at most, and the core places them inside the page. They may overlap:
        // a guest may have granted the page that it gave up.
        unsafe { shared_copy::copy(piece.as_ptr(), base.add(at), piece.len()) };
        at += piece.len();
    }
    debug_assert_eq!(at, end, "a frame has the bytes that were placed");
    // SAFETY: both ranges are inside the page. Another domain may write there too, so that there is no reference to it.
    unsafe {
        shared_copy::zero(base, start);
        shared_copy::zero(base.add(at), PAGE_SIZE - at);
    }
}
