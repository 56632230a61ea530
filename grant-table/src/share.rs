//! A front end's pool of granted pages.
//!
//! All of it is granted once, to one back end. What is handed out is a [`Buffer`]: some consecutive pages of the pool
//! that nobody else has (XSA-405: a buffer with two owners was a guest's private data on the wire). Taking one and
//! giving it back neither allocates nor locks; a buffer that is dropped instead stays taken.

use hypervisor::{Access, DomId, GrantRef, Hypervisor, PAGE_SIZE, Result, Shared};
use std::ops::Range;
use std::sync::atomic::{AtomicU32, Ordering};
use vm_memory::VolatileSlice;

/// Pages of a pool, taken by whoever has this value.
#[derive(PartialEq, Eq, Debug)]
#[must_use = "a buffer that is dropped is never free again"]
pub struct Buffer {
    pool: u32,
    first: u32,
    pages: u32,
}

impl Buffer {
    /// Number of pages.
    pub fn pages(&self) -> usize {
        self.pages as usize
    }

    fn range(&self) -> Range<usize> {
        self.first as usize..(self.first + self.pages) as usize
    }
}

/// Granted pages, free or taken.
#[derive(Debug)]
pub struct Pool {
    shared: Shared,
    /// Free pages, a bit each.
    free: Box<[u64]>,
    left: usize,
    /// No page in the words before is free.
    hint: usize,
    id: u32,
}

impl Pool {
    /// Grants `pages` pages to `peer`.
    ///
    /// # Errors
    /// As [`Hypervisor::share`].
    pub fn new(hypervisor: &dyn Hypervisor, peer: DomId, pages: usize, access: Access) -> Result<Self> {
        static LAST: AtomicU32 = AtomicU32::new(0);
        let shared = hypervisor.share(peer, pages, access)?;
        let mut pool = Self {
            shared,
            free: vec![0; pages.div_ceil(64)].into(),
            left: 0,
            hint: 0,
            id: LAST.fetch_add(1, Ordering::Relaxed),
        };
        pool.release(0..pages);
        Ok(pool)
    }

    /// Pages that are free.
    pub fn left(&self) -> usize {
        self.left
    }

    /// Pages in all.
    pub fn pages(&self) -> usize {
        self.shared.pages()
    }

    fn release(&mut self, pages: Range<usize>) {
        self.left += pages.len();
        self.hint = self.hint.min(pages.start / 64);
        for page in pages {
            self.free[page / 64] |= 1 << (page % 64);
        }
    }

    /// Takes one page.
    #[inline]
    pub fn take(&mut self) -> Option<Buffer> {
        let word = self.free[self.hint..].iter().position(|word| *word != 0)? + self.hint;
        let page = word * 64 + self.free[word].trailing_zeros() as usize;
        self.free[word] &= self.free[word] - 1;
        self.hint = word;
        self.left -= 1;
        Some(Buffer { pool: self.id, first: page as u32, pages: 1 })
    }

    /// Takes `pages` pages at consecutive addresses.
    pub fn take_run(&mut self, pages: usize) -> Option<Buffer> {
        if pages <= 1 || pages > self.left {
            return if pages == 1 { self.take() } else { None };
        }
        let mut run = 0;
        let end = (self.hint * 64..self.shared.pages()).find(|page| {
            let free = self.free[page / 64] & (1 << (page % 64)) != 0;
            run = if free { run + 1 } else { 0 };
            run == pages
        })?;
        let first = end + 1 - pages;
        for page in first..=end {
            self.free[page / 64] &= !(1 << (page % 64));
        }
        self.left -= pages;
        Some(Buffer { pool: self.id, first: first as u32, pages: pages as u32 })
    }

    /// Gives a buffer back.
    ///
    /// # Panics
    /// If it is another pool's.
    #[inline]
    pub fn put(&mut self, buffer: Buffer) {
        self.check(&buffer);
        self.release(buffer.range());
    }

    /// A buffer names pages of the pool that made it only.
    #[inline]
    fn check(&self, buffer: &Buffer) {
        assert_eq!(buffer.pool, self.id, "a buffer of another pool");
    }

    /// The references of its pages.
    #[inline]
    pub fn refs(&self, buffer: &Buffer) -> &[GrantRef] {
        self.check(buffer);
        &self.shared.refs()[buffer.range()]
    }

    /// Octets of it, across its pages; `None` if they are not inside.
    #[inline]
    pub fn slice(&self, buffer: &Buffer, offset: usize, len: usize) -> Option<VolatileSlice<'_>> {
        self.check(buffer);
        let inside = offset.checked_add(len)? <= buffer.pages() * PAGE_SIZE;
        inside.then(|| self.shared.slice(buffer.first as usize * PAGE_SIZE + offset, len))?
    }

    /// Ends the grants, and says if the peer still holds a page.
    ///
    /// # Errors
    /// As [`Shared::end`].
    pub fn end(self) -> Result<()> {
        self.shared.end()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use hypervisor::local::Sandbox;
    use proptest::prelude::*;
    use std::collections::HashSet;

    fn pool(pages: usize) -> (Sandbox, Pool) {
        let sandbox = Sandbox::new().unwrap();
        let guest = sandbox.join(DomId(1)).unwrap();
        let pool = Pool::new(&*guest, DomId::DOM0, pages, Access::ReadWrite).unwrap();
        (sandbox, pool)
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        /// XSA-405: at no time do two buffers have a page in common, and none is lost.
        #[test]
        fn every_page_has_one_owner(steps in proptest::collection::vec((0usize..12, any::<usize>()), 1..300)) {
            let (_sandbox, mut pool) = pool(150);
            let mut taken: Vec<Buffer> = Vec::new();
            let mut owned = HashSet::new();
            for (pages, pick) in steps {
                if pages > 0 {
                    let Some(buffer) = pool.take_run(pages) else { continue };
                    prop_assert_eq!(buffer.pages(), pages);
                    for gref in pool.refs(&buffer) {
                        prop_assert!(owned.insert(*gref), "{} has two owners", gref);
                    }
                    taken.push(buffer);
                } else if !taken.is_empty() {
                    let buffer = taken.swap_remove(pick % taken.len());
                    for gref in pool.refs(&buffer) {
                        prop_assert!(owned.remove(gref));
                    }
                    pool.put(buffer);
                }
                prop_assert_eq!(pool.left() + owned.len(), 150);
            }
            taken.into_iter().for_each(|buffer| pool.put(buffer));
            prop_assert_eq!(std::iter::from_fn(|| pool.take()).count(), 150, "every page can be taken again");
        }
    }

    #[test]
    fn runs_are_consecutive_and_bounded() {
        let (_sandbox, mut pool) = pool(130);
        let buffer = pool.take_run(66).unwrap();
        let slice = pool.slice(&buffer, 65 * PAGE_SIZE - 1, 2).unwrap();
        slice.copy_from(&[7u8, 7][..]);
        assert!(pool.slice(&buffer, 66 * PAGE_SIZE - 1, 2).is_none());
        assert!(pool.slice(&buffer, usize::MAX, 2).is_none());
        assert!(pool.take_run(65).is_none());
        assert!(pool.take_run(0).is_none());
        pool.put(buffer);
        assert!(pool.take_run(130).is_some());
    }

    #[test]
    #[should_panic(expected = "a buffer of another pool")]
    fn a_buffer_belongs_to_its_pool() {
        let ((_a, mut one), (_b, mut other)) = (pool(2), pool(2));
        let buffer = one.take().unwrap();
        other.put(buffer);
    }
}
