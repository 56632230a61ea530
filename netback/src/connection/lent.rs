// Not a core: does I/O or calls a hypervisor.

//! Pages that frames are received into: lent to the port at the other end of a wire, kept while a frame is in them, and then
//! flipped to the guest as they are.
//!
//! They are pages that this domain owns in the guest's arena, so that the guest may see what is read into them. A page is in the
//! sender's pool, or here until the last frame in it is dropped. It is dropped then: if it was transferred it is the guest's,
//! otherwise this domain's again.
#![allow(unsafe_code)] // Fills pages that the former owner may still write to.

use crate::rx::PageFill;
use bridge::port::LENT;
use bridge::{Frame, HEAD, Iovecs, Pin, PinTable};
use grant_table::OwnedPage;
use grant_table::flip::Sender;
use ring_abi::PAGE_SIZE;
use std::io;

/// Pages that are lent for one frame: the longest, with its head before it.
pub(super) const PAGES: usize = (LENT + HEAD).div_ceil(PAGE_SIZE);
/// Frames that may be in lent pages: a guest has no more requests, and each takes one at least.
const FRAMES: u16 = 256;

/// The pages of a frame.
struct LentFrame {
    pages: Vec<OwnedPage>,
    /// They were sent already: the guest may have any of them.
    is_sent: bool,
}

/// The pages that frames are in.
pub(super) struct Lent {
    frames: PinTable<LentFrame>,
    /// Empty lists of pages, to be used again.
    spare: Vec<Vec<OwnedPage>>,
    pages: usize,
}

impl Lent {
    /// # Errors
    /// No eventfd could be created.
    pub(super) fn new() -> io::Result<Self> {
        Ok(Self { frames: PinTable::new(FRAMES)?, spare: Vec::new(), pages: 0 })
    }

    /// Pages that frames are in.
    pub(super) fn pages(&self) -> usize {
        self.pages
    }

    /// Appends the pages that the sender's pool would give next, but for the frame's head at the start of the first.
    pub(super) fn offer(sender: &Sender, head_len: usize, into: &mut Iovecs) {
        let mut start = head_len;
        for page in sender.pages().take(PAGES) {
            let Some(part) = page.slice(start, PAGE_SIZE - start) else { return };
            into.push(bridge::iovec(part.as_ptr(), part.len()));
            start = 0;
        }
    }

    /// Keeps the first `count` of the pages offered last for a frame.
    pub(super) fn keep(&mut self, sender: &mut Sender, count: usize) -> Option<Pin> {
        let mut pages = self.spare.pop().unwrap_or_else(|| Vec::with_capacity(PAGES));
        pages.extend((0..count.min(PAGES)).map_while(|_| sender.page()));
        let count = pages.len();
        match self.frames.insert(LentFrame { pages, is_sent: false }) {
            Ok((pin, _)) => {
                self.pages += count;
                Some(pin)
            }
            Err(LentFrame { mut pages, .. }) => {
                pages.drain(..).rev().for_each(|page| sender.put_back(page));
                self.spare.push(pages);
                None
            }
        }
    }

    /// Drops the pages of frames that are dropped.
    #[inline]
    pub(super) fn reap(&mut self) {
        while let Some(LentFrame { mut pages, .. }) = self.frames.reap() {
            self.pages -= pages.len();
            pages.clear();
            self.spare.push(pages);
        }
    }

    /// Adds the pages that a frame is in to the sender's batch, if they are as the guest is to have them: those of `fills`. `false`,
    /// and nothing done, if the frame is elsewhere.
    pub(super) fn send(&mut self, frame: &Frame, fills: &[PageFill], sender: &mut Sender) -> bool {
        let Some(pin) = frame.held_by() else { return false };
        let Some(lent) = self.frames.get_mut(pin) else { return false };
        if lent.is_sent || !is_placed(frame, fills, &lent.pages) {
            return false;
        }
        lent.is_sent = true;
        for (page, fill) in lent.pages.iter().zip(fills) {
            let is_first = fill.frame_offset == 0;
            finish(page, if is_first { frame.head() } else { &[] }, fill.len.into());
            sender.add_kept(page, fill.gref);
        }
        true
    }
}

/// Whether the frame's payload is in `pages` where `fills` have it.
fn is_placed(frame: &Frame, fills: &[PageFill], pages: &[OwnedPage]) -> bool {
    let head_len = frame.head().len();
    let mut parts = frame.body();
    let mut start = head_len;
    let all = fills.len() == pages.len()
        && fills.iter().zip(pages).all(|(fill, page)| {
            let len = usize::from(fill.len).checked_sub(start).filter(|_| fill.offset == 0);
            let expected = len.and_then(|len| page.slice(start, len));
            start = 0;
            let found = parts.next();
            expected.zip(found).is_some_and(|(expected, found)| {
                found.as_ptr() == expected.as_ptr().cast_const() && found.len() == expected.len()
            })
        });
    all && parts.next().is_none()
}

/// Writes the start of a page's `len` bytes of a frame, and zeroes what is behind them.
fn finish(page: &OwnedPage, head: &[u8], len: usize) {
    let Some(whole) = page.slice(0, PAGE_SIZE) else { return };
    debug_assert!(head.len() <= len && len <= PAGE_SIZE);
    // SAFETY: both ranges are inside the page, and `head` is private memory. Another domain may write to the page too, so that
    // there is no reference to it.
    unsafe {
        shared_copy::copy(head.as_ptr(), whole.as_ptr(), head.len());
        shared_copy::zero(whole.as_ptr().add(len), PAGE_SIZE - len);
    }
}
