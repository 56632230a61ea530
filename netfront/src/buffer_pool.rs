// Not a core: does I/O or calls a hypervisor.

//! Granted pages cut into buffers of one size.

use grant_table::{Access, GrantTable, Result, Shared};
use ring_abi::PAGE_SIZE;
use ring_abi::{DomId, GrantRef};
use vm_memory::VolatileSlice;

/// Buffers of 2^`shift` bytes, at most a page each, granted to one domain.
#[derive(Debug)]
pub(crate) struct BufferPool {
    shared: Shared,
    shift: u32,
}

impl BufferPool {
    /// Grants pages for `count` buffers of 2^`shift` bytes.
    ///
    /// # Errors
    /// Those of [`GrantTable::share`].
    pub(crate) fn new(
        grants: &dyn GrantTable,
        peer: DomId,
        count: usize,
        shift: u32,
        access: Access,
    ) -> Result<Self> {
        let pages = (count << shift).div_ceil(PAGE_SIZE);
        Ok(Self { shared: grants.share(peer, pages, access)?, shift })
    }

    /// Whether the peer can still map the pages.
    pub(crate) fn is_live(&self) -> bool {
        self.shared.is_live()
    }

    /// The grant of the page that holds a buffer.
    #[inline]
    pub(crate) fn gref(&self, buffer: u16) -> GrantRef {
        self.shared.refs()[(usize::from(buffer) << self.shift) / PAGE_SIZE]
    }

    /// The offset of a buffer in its page.
    #[inline]
    pub(crate) fn offset(&self, buffer: u16) -> u16 {
        ((usize::from(buffer) << self.shift) % PAGE_SIZE) as u16
    }

    /// The `len` bytes from `offset` on of a buffer.
    ///
    /// # Panics
    /// If they are not inside the buffer, or there is no such buffer. No peer can cause this: offsets and lengths from
    /// a ring are checked when they are read.
    #[inline]
    pub(crate) fn slice(&self, buffer: u16, offset: u16, len: usize) -> VolatileSlice<'_> {
        let start = (usize::from(buffer) << self.shift) + usize::from(offset);
        assert!(usize::from(offset) + len <= 1 << self.shift, "bytes outside their buffer");
        self.shared.slice(start, len).expect("every buffer is inside the shared pages").into()
    }
}
