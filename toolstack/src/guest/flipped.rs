//! Frames that arrived in flipped pages, passed on in these pages: nothing but their heads is copied.
#![allow(unsafe_code)] // frames' pages are raw memory

use std::io;

use bridge::{Fragment, Frame, HEAD, PinTable};
use netfront::ReceivedFrame;

/// Frames that are passed on and not released yet.
const FRAMES: u16 = 512;
/// Pages of these: as many as the interface has buffers. Frames beyond are copied, so that pages are left for others.
const PAGES: usize = 256;

/// The pages of frames that are passed on.
pub(super) struct FlippedFrames {
    table: PinTable<ReceivedFrame>,
    /// Pages in the table.
    pages: usize,
}

impl FlippedFrames {
    /// An empty table.
    ///
    /// # Errors
    /// No eventfd can be created.
    pub(super) fn new() -> io::Result<FlippedFrames> {
        Ok(FlippedFrames { table: PinTable::new(FRAMES)?, pages: 0 })
    }

    /// Frees the pages of frames that were released.
    pub(super) fn reap(&mut self) {
        while let Some(frame) = self.table.reap() {
            self.pages -= frame.pages().len();
        }
    }

    /// Makes the rest of `received`, which is left empty, the payload of `frame`, whose head is filled; `false`, and nothing
    /// done, where it is to be copied instead.
    pub(super) fn pass_on(&mut self, received: &mut ReceivedFrame, frame: &mut Frame) -> bool {
        let pages = received.pages().len();
        if self.pages + pages > PAGES {
            return false;
        }
        let (pin, received) = match self.table.insert(std::mem::take(received)) {
            Ok(inserted) => inserted,
            Err(refused) => {
                *received = refused;
                return false;
            }
        };
        self.pages += pages;
        frame.pin(pin);
        let mut skip = frame.head().len();
        for page in received.pages() {
            let bytes = page.bytes();
            let skipped = skip.min(bytes.len());
            skip -= skipped;
            let start = bytes.as_ptr().wrapping_add(skipped);
            // SAFETY: inside the page, which is this domain's until the pin's last clone is dropped and it is reaped.
            let pushed = frame.push(unsafe { Fragment::new(start, (bytes.len() - skipped) as u32) });
            debug_assert!(pushed.is_ok(), "a frame takes as many fragments as a packet has slots");
        }
        true
    }
}

/// Fills the frame's head with the first bytes of `received`.
pub(super) fn fill_head(received: &ReceivedFrame, frame: &mut Frame) {
    let head = frame.fill_head(received.len().min(HEAD));
    gather(received, head);
}

/// Copies the first bytes of `received`.
pub(super) fn gather(received: &ReceivedFrame, mut into: &mut [u8]) {
    for page in received.pages() {
        let bytes = page.bytes();
        let len = bytes.len().min(into.len());
        let (part, rest) = into.split_at_mut(len);
        if let Some(bytes) = bytes.subslice(0, len) {
            bytes.copy_to(part);
        }
        into = rest;
    }
}
