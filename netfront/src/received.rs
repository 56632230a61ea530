// Not a core: does I/O or calls a hypervisor.

//! A frame in the pages that it was flipped in.

use arrayvec::ArrayVec;
use grant_table::{OwnedPage, SharedSlice};
use ring_abi::netif::SLOTS_FATAL;

/// A page of this domain's with a part of a frame. Dropping it frees the page.
#[derive(Debug)]
pub struct ReceivedPage {
    page: OwnedPage,
    offset: u16,
    len: u16,
}

impl ReceivedPage {
    /// `None` if the bytes are not inside the page.
    pub(crate) fn new(page: OwnedPage, offset: u16, len: u16) -> Option<Self> {
        page.slice(offset.into(), len.into())?;
        Some(Self { page, offset, len })
    }

    /// The frame's bytes in this page. A hostile backend may still change them.
    #[inline]
    pub fn bytes(&self) -> SharedSlice<'_> {
        self.page.slice(self.offset.into(), self.len.into()).expect("checked when it was made")
    }

    /// The whole page, which has nothing but zeroes beside the frame's bytes.
    pub fn page(&self) -> &OwnedPage {
        &self.page
    }
}

/// The pages of a received frame, in order.
#[derive(Debug, Default)]
pub struct ReceivedFrame {
    pub(crate) pages: ArrayVec<ReceivedPage, SLOTS_FATAL>,
}

impl ReceivedFrame {
    /// The pages, in order.
    pub fn pages(&self) -> &[ReceivedPage] {
        &self.pages
    }

    /// Bytes of the frame.
    pub fn len(&self) -> usize {
        self.pages.iter().map(|page| usize::from(page.len)).sum()
    }

    /// Whether the frame has no bytes.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}
