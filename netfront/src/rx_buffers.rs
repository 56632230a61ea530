// Not a core: does I/O or calls a hypervisor.

//! The buffers of a receive ring: pages that are granted to the backend, or entries that accept its pages.

use crate::buffer_pool::BufferPool;
use crate::error::ConnectionError;
use crate::rx::Fragment;
use grant_table::flip::Receiver;
use grant_table::{Error, GrantTable, OwnedPage};
use ring_abi::{DomId, GrantRef};
use std::sync::Arc;
use vm_memory::VolatileSlice;

/// The buffers of a ring.
pub(crate) enum RxBuffers {
    Copied(BufferPool),
    Flipped(FlippedBuffers),
}

/// What an entry that accepts a page has.
#[derive(Debug)]
enum Entry {
    /// None yet: it is posted, or can be posted as it is.
    Accepts,
    /// A page, to be read or moved out.
    Has(OwnedPage),
    /// None any more: its page was moved out.
    Empty,
}

/// Entries that accept pages, one for each buffer.
pub(crate) struct FlippedBuffers {
    receiver: Receiver,
    entries: Box<[Entry]>,
}

impl RxBuffers {
    /// Makes entries for `count` buffers, and pages to be given up for them to `peer`, which flips them.
    pub(crate) fn flipped(
        grants: &Arc<dyn GrantTable>,
        peer: DomId,
        count: usize,
    ) -> Result<Self, ConnectionError> {
        let acceptor = grants.clone().page_acceptor();
        let acceptor = acceptor.ok_or(Error::NoSpace("page transfer on this hypervisor"))?;
        let receiver = Receiver::new(acceptor, peer, count)?;
        let entries = (0..count).map(|_| Entry::Accepts).collect();
        Ok(Self::Flipped(FlippedBuffers { receiver, entries }))
    }

    /// The grant of a buffer.
    #[inline]
    pub(crate) fn gref(&self, buffer: u16) -> GrantRef {
        match self {
            Self::Copied(pool) => pool.gref(buffer),
            Self::Flipped(flipped) => flipped.receiver.gref(buffer.into()),
        }
    }

    /// Takes the pages that arrived in the buffers of a packet.
    ///
    /// # Errors
    /// The backend transferred what it did not own.
    #[inline]
    pub(crate) fn take(&mut self, buffers: &[u16]) -> Result<(), ConnectionError> {
        let Self::Flipped(flipped) = self else { return Ok(()) };
        for buffer in buffers {
            if let Some(page) = flipped.receiver.take((*buffer).into())? {
                flipped.entries[usize::from(*buffer)] = Entry::Has(page);
            }
        }
        Ok(())
    }

    /// The bytes of a fragment; `None` if the backend has transferred no page for it.
    #[inline]
    pub(crate) fn slice(&self, fragment: &Fragment) -> Option<VolatileSlice<'_>> {
        let Fragment { buffer, offset, len } = *fragment;
        match self {
            Self::Copied(pool) => Some(pool.slice(buffer, offset, len.into())),
            Self::Flipped(flipped) => match &flipped.entries[usize::from(buffer)] {
                Entry::Has(page) => page.slice(offset.into(), len.into()).map(VolatileSlice::from),
                Entry::Accepts | Entry::Empty => None,
            },
        }
    }

    /// Moves a buffer's page out; `None` if the backend has transferred none, or buffers are copied.
    pub(crate) fn move_out(&mut self, buffer: u16) -> Option<OwnedPage> {
        let Self::Flipped(flipped) = self else { return None };
        let entry = &mut flipped.entries[usize::from(buffer)];
        match std::mem::replace(entry, Entry::Empty) {
            Entry::Has(page) => Some(page),
            before => {
                *entry = before;
                None
            }
        }
    }

    /// Ends the use of a buffer, and frees its page; `true` if the buffer can be posted at once. Otherwise
    /// [`RxBuffers::renew`] posts it.
    #[inline]
    pub(crate) fn release(&mut self, buffer: u16) -> bool {
        match self {
            Self::Copied(_) => true,
            Self::Flipped(flipped) => {
                let entry = &mut flipped.entries[usize::from(buffer)];
                matches!(std::mem::replace(entry, Entry::Accepts), Entry::Accepts)
            }
        }
    }

    /// Gives up pages for the buffers whose pages were received, and posts each with its grant, as far as there are free
    /// pages.
    #[inline]
    pub(crate) fn renew(&mut self, mut post: impl FnMut(u16, GrantRef)) -> Result<(), ConnectionError> {
        let Self::Flipped(FlippedBuffers { receiver, .. }) = self else { return Ok(()) };
        Ok(receiver.renew(|index, gref| post(index as u16, gref))?)
    }

    /// Whether buffers wait for free pages.
    #[inline]
    pub(crate) fn is_short(&self) -> bool {
        matches!(self, Self::Flipped(flipped) if flipped.receiver.is_short())
    }

    /// Whether pages are flipped.
    pub(crate) fn are_flipped(&self) -> bool {
        matches!(self, Self::Flipped(_))
    }
}
