//! Memory of our own that an engine may register with the kernel: pages that stand for a guest's, taken in runs.
//!
//! Registered memory is known to the kernel for good, so that an operation need not take hold of its pages: on Xen
//! that costs more than to copy them (`tests/xen/run grant-costs`).

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use hypervisor::PAGE_SIZE;
use vm_memory::{MmapRegion, VolatileMemory, VolatileSlice};

/// Pages of a slab: what a full ring of requests for a page each needs twice.
const PAGES: u32 = u64::BITS;

/// Pages, and which of them are taken.
#[derive(Debug)]
pub struct Slab {
    region: MmapRegion,
    taken: AtomicU64,
}

/// Pages that follow each other; free again when this is dropped.
#[derive(Debug)]
pub struct Run {
    slab: Arc<Slab>,
    first: u32,
    pages: u32,
}

impl Slab {
    /// All of it free.
    ///
    /// # Errors
    /// The system's.
    pub fn new() -> io::Result<Arc<Slab>> {
        let region = MmapRegion::new(PAGES as usize * PAGE_SIZE).map_err(io::Error::other)?;
        Ok(Arc::new(Slab { region, taken: AtomicU64::new(0) }))
    }

    /// All of its memory.
    pub fn region(&self) -> &MmapRegion {
        &self.region
    }

    /// Pages for so many bytes; `None` where so many do not lie together.
    #[inline]
    pub fn take(self: &Arc<Slab>, bytes: usize) -> Option<Run> {
        let pages =
            u32::try_from(bytes.div_ceil(PAGE_SIZE)).ok().filter(|pages| (1..=PAGES).contains(pages))?;
        let taken = self.taken.load(Ordering::Relaxed);
        let first = (0..=PAGES - pages).find(|first| taken & mask(*first, pages) == 0)?;
        // One thread takes; others may give back meanwhile.
        self.taken.fetch_or(mask(first, pages), Ordering::Acquire);
        Some(Run { slab: self.clone(), first, pages })
    }
}

impl Run {
    /// The first bytes of it; `None` if there are not so many.
    #[inline]
    pub fn slice(&self, offset: usize, len: usize) -> Option<VolatileSlice<'_>> {
        let end = offset.checked_add(len)?;
        let inside = end <= self.pages as usize * PAGE_SIZE;
        inside.then(|| self.slab.region.get_slice(self.first as usize * PAGE_SIZE + offset, len).ok())?
    }
}

impl Drop for Run {
    fn drop(&mut self) {
        self.slab.taken.fetch_and(!mask(self.first, self.pages), Ordering::Release);
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
    fn runs_never_overlap_and_are_free_again() {
        let slab = Slab::new().unwrap();
        assert!(slab.take(0).is_none() && slab.take(65 * PAGE_SIZE).is_none());
        let whole = slab.take(64 * PAGE_SIZE).unwrap();
        assert!(slab.take(1).is_none());
        drop(whole);
        let runs: Vec<_> = std::iter::from_fn(|| slab.take(11 * PAGE_SIZE - 1)).collect();
        assert_eq!(runs.iter().map(|run| run.first).collect::<Vec<_>>(), [0, 11, 22, 33, 44]);
        assert_eq!(slab.take(9 * PAGE_SIZE).map(|run| run.first), Some(55));
        drop(runs);
        let run = slab.take(20 * PAGE_SIZE).unwrap();
        assert!(run.slice(0, 20 * PAGE_SIZE).is_some() && run.slice(1, 20 * PAGE_SIZE).is_none());
        assert!(run.slice(usize::MAX, 2).is_none());
    }
}
