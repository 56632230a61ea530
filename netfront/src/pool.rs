//! Granted pages cut into buffers of one size.

use hypervisor::{Access, Hypervisor, PAGE_SIZE, Result, Shared};
use ring_abi::{DomId, GrantRef};
use vm_memory::VolatileSlice;

/// Buffers of 2^`shift` bytes, up to a page, granted to one peer.
#[derive(Debug)]
pub(crate) struct Pool {
    shared: Shared,
    shift: u32,
}

impl Pool {
    /// `count` buffers of 2^`shift` bytes.
    ///
    /// # Errors
    /// As [`Hypervisor::share`].
    pub(crate) fn new(
        hv: &dyn Hypervisor,
        peer: DomId,
        count: usize,
        shift: u32,
        access: Access,
    ) -> Result<Self> {
        let pages = (count << shift).div_ceil(PAGE_SIZE);
        Ok(Self { shared: hv.share(peer, pages, access)?, shift })
    }

    /// The page that a buffer lies in.
    #[inline]
    pub(crate) fn gref(&self, buffer: u16) -> GrantRef {
        self.shared.refs()[(usize::from(buffer) << self.shift) / PAGE_SIZE]
    }

    /// Where in its page a buffer begins.
    #[inline]
    pub(crate) fn offset(&self, buffer: u16) -> u16 {
        ((usize::from(buffer) << self.shift) % PAGE_SIZE) as u16
    }

    /// Bytes of a buffer, all inside it.
    ///
    /// # Panics
    /// If they are not, or there is no such buffer: our own error, since what peers say is checked before.
    #[inline]
    pub(crate) fn slice(&self, buffer: u16, offset: u16, len: usize) -> VolatileSlice<'_> {
        let start = (usize::from(buffer) << self.shift) + usize::from(offset);
        assert!(usize::from(offset) + len <= 1 << self.shift, "bytes outside their buffer");
        self.shared.slice(start, len).expect("every buffer lies in the pool")
    }
}
