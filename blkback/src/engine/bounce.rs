// Not a core: does I/O or calls a hypervisor.

//! Bounce buffers: memory of the backend that an engine may register with the kernel, through which guest data is
//! copied.
//!
//! Registered memory stays pinned, so that the kernel need not pin the pages of each operation: on Xen pinning a page
//! costs more than copying it (`tests/xen/run grant-costs`).

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use ring_abi::PAGE_SIZE;
use vm_memory::{MmapRegion, VolatileMemory, VolatileSlice};

/// Pages of a pool: twice what a full ring of requests for one page each needs.
const PAGES: u32 = u64::BITS;

/// A bounce buffer.
#[derive(Debug)]
pub(crate) enum Buffer {
    /// Memory of its own.
    Private(MmapRegion),
    /// Part of a pool.
    Pooled(BounceBuffer),
}

impl Buffer {
    /// Part of the buffer; `None` if it is not inside.
    #[inline]
    pub(crate) fn slice(&self, offset: usize, len: usize) -> Option<VolatileSlice<'_>> {
        match self {
            Buffer::Private(region) => region.get_slice(offset, len).ok(),
            Buffer::Pooled(buffer) => buffer.slice(offset, len),
        }
    }
}

/// A pool of pages, and which of them are in use.
#[derive(Debug)]
pub struct BouncePool {
    region: MmapRegion,
    used: AtomicU64,
}

/// Adjacent pages of a [`BouncePool`]; given back when this is dropped.
#[derive(Debug)]
pub struct BounceBuffer {
    pool: Arc<BouncePool>,
    first: u32,
    pages: u32,
}

impl BouncePool {
    /// Allocates a pool whose pages are all free.
    ///
    /// # Errors
    /// mmap fails.
    pub fn new() -> io::Result<Arc<BouncePool>> {
        let region = MmapRegion::new(PAGES as usize * PAGE_SIZE).map_err(io::Error::other)?;
        Ok(Arc::new(BouncePool { region, used: AtomicU64::new(0) }))
    }

    /// The memory of all pages.
    pub fn region(&self) -> &MmapRegion {
        &self.region
    }

    /// Allocates adjacent pages for `bytes` bytes; `None` if there are not so many free.
    #[inline]
    pub fn alloc(self: &Arc<BouncePool>, bytes: usize) -> Option<BounceBuffer> {
        let pages =
            u32::try_from(bytes.div_ceil(PAGE_SIZE)).ok().filter(|pages| (1..=PAGES).contains(pages))?;
        let used = self.used.load(Ordering::Relaxed);
        let first = (0..=PAGES - pages).find(|first| used & mask(*first, pages) == 0)?;
        // One thread allocates; others may free meanwhile.
        self.used.fetch_or(mask(first, pages), Ordering::Acquire);
        Some(BounceBuffer { pool: self.clone(), first, pages })
    }
}

impl BounceBuffer {
    /// Part of the buffer; `None` if it is not inside.
    #[inline]
    pub fn slice(&self, offset: usize, len: usize) -> Option<VolatileSlice<'_>> {
        let end = offset.checked_add(len)?;
        let inside = end <= self.pages as usize * PAGE_SIZE;
        inside.then(|| self.pool.region.get_slice(self.first as usize * PAGE_SIZE + offset, len).ok())?
    }
}

impl Drop for BounceBuffer {
    fn drop(&mut self) {
        self.pool.used.fetch_and(!mask(self.first, self.pages), Ordering::Release);
    }
}

#[inline]
fn mask(first: u32, pages: u32) -> u64 {
    (u64::MAX >> (PAGES - pages)) << first
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buffers_never_overlap_and_are_freed_when_dropped() {
        let pool = BouncePool::new().unwrap();
        assert!(pool.alloc(0).is_none() && pool.alloc(65 * PAGE_SIZE).is_none());
        let whole = pool.alloc(64 * PAGE_SIZE).unwrap();
        assert!(pool.alloc(1).is_none());
        drop(whole);
        let buffers: Vec<_> = std::iter::from_fn(|| pool.alloc(11 * PAGE_SIZE - 1)).collect();
        assert_eq!(buffers.iter().map(|buffer| buffer.first).collect::<Vec<_>>(), [0, 11, 22, 33, 44]);
        assert_eq!(pool.alloc(9 * PAGE_SIZE).map(|buffer| buffer.first), Some(55));
        drop(buffers);
        let buffer = pool.alloc(20 * PAGE_SIZE).unwrap();
        assert!(buffer.slice(0, 20 * PAGE_SIZE).is_some() && buffer.slice(1, 20 * PAGE_SIZE).is_none());
        assert!(buffer.slice(usize::MAX, 2).is_none());
    }
}
