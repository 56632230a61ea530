//! A backend's persistent grants: pages that stay mapped because the frontend uses the same ones again and again.
//!
//! The cache is bounded, as Linux's `max_persistent_grants`: the least recently used page that no request uses is
//! unmapped for a new one. A page for which there is no space is mapped for its request only. So every mapping is
//! owned by the cache or by a request, and unmapped when its last owner drops it (XSA-371: error paths that did not
//! unmap).

use hypervisor::{Access, DomId, GrantRef, Hypervisor, Mapping, Result};
use lru::LruCache;
use std::sync::Arc;

/// Pages that Linux's backend keeps mapped for a ring, `xen_blkif_max_pgrants`.
pub const LINUX_MAX: usize = 1056;

/// A page that is mapped while any owner of it exists.
pub type Page = Arc<Mapping>;

/// Counters of a cache.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Counts {
    /// Requested pages that were mapped already.
    pub hits: u64,
    /// Requested pages that were mapped and cached.
    pub misses: u64,
    /// Requested pages that were mapped and not cached, for want of space.
    pub uncached: u64,
    /// Pages unmapped in favour of others.
    pub evicted: u64,
}

/// Mapped pages of one frontend, for reading and writing, by reference.
///
/// ```
/// use grant_table::Cache;
/// use hypervisor::{Access, DomId, Hypervisor, local::Sandbox};
///
/// let sandbox = Sandbox::new()?;
/// let guest = sandbox.join(DomId(1))?;
/// let shared = guest.share(DomId::DOM0, 1, Access::ReadWrite)?;
/// let mut cache = Cache::new(sandbox.join(DomId::DOM0)?, DomId(1), 8);
/// drop(cache.get(shared.refs()[0])?);
/// drop(cache.get(shared.refs()[0])?);
/// assert_eq!((cache.counts().misses, cache.counts().hits), (1, 1));
/// # Ok::<(), hypervisor::Error>(())
/// ```
pub struct Cache {
    hypervisor: Arc<dyn Hypervisor>,
    peer: DomId,
    max: usize,
    pages: LruCache<GrantRef, Page>,
    counts: Counts,
}

impl Cache {
    /// Creates a cache of at most `max` pages of `peer`.
    pub fn new(hypervisor: Arc<dyn Hypervisor>, peer: DomId, max: usize) -> Self {
        Self { hypervisor, peer, max, pages: LruCache::unbounded(), counts: Counts::default() }
    }

    /// The number of cached pages.
    pub fn len(&self) -> usize {
        self.pages.len()
    }

    /// Whether no page is cached.
    pub fn is_empty(&self) -> bool {
        self.pages.is_empty()
    }

    /// The counters so far.
    pub fn counts(&self) -> Counts {
        self.counts
    }

    /// Returns the page of `gref`, which is mapped if it is not cached.
    ///
    /// # Errors
    /// As [`Hypervisor::map`].
    pub fn get(&mut self, gref: GrantRef) -> Result<Page> {
        if let Some(page) = self.pages.get(&gref) {
            self.counts.hits += 1;
            return Ok(page.clone());
        }
        let page = Arc::new(self.hypervisor.map(self.peer, &[gref], Access::ReadWrite)?);
        if self.make_space() {
            self.counts.misses += 1;
            self.pages.put(gref, page.clone());
        } else {
            self.counts.uncached += 1;
        }
        Ok(page)
    }

    /// Evicts an unused page if the cache is full; returns whether there is space for another.
    fn make_space(&mut self) -> bool {
        if self.pages.len() < self.max {
            return true;
        }
        let idle = self.pages.iter().rev().find(|(_, page)| Arc::strong_count(page) == 1);
        let Some(gref) = idle.map(|(gref, _)| *gref) else { return false };
        self.counts.evicted += 1;
        self.pages.pop(&gref).is_some()
    }
}

impl std::fmt::Debug for Cache {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Cache({} of at most {} pages of domain {})", self.len(), self.max, self.peer)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use hypervisor::Shared;
    use hypervisor::local::Sandbox;
    use proptest::prelude::*;

    const GUEST: DomId = DomId(1);

    fn setup(max: usize, pages: usize) -> (Sandbox, Shared, Cache) {
        let sandbox = Sandbox::new().unwrap();
        let guest = sandbox.join(GUEST).unwrap();
        let shared = guest.share(DomId::DOM0, pages, Access::ReadWrite).unwrap();
        let cache = Cache::new(sandbox.join(DomId::DOM0).unwrap(), GUEST, max);
        (sandbox, shared, cache)
    }

    #[test]
    fn full_cache_evicts_the_least_recently_used_page() {
        let (_sandbox, shared, mut cache) = setup(2, 3);
        let [a, b, c] = [0, 1, 2].map(|n| shared.refs()[n]);
        for gref in [a, b, a, c, a] {
            cache.get(gref).unwrap();
        }
        assert_eq!(cache.counts(), Counts { hits: 2, misses: 3, uncached: 0, evicted: 1 });
        cache.get(b).unwrap();
        assert_eq!(cache.counts().misses, 4, "b was evicted for c");
    }

    #[test]
    fn page_in_use_stays_mapped_after_eviction_and_drop_of_the_cache() {
        let (_sandbox, shared, mut cache) = setup(2, 3);
        let held: Vec<_> = shared.refs().iter().map(|gref| cache.get(*gref).unwrap()).collect();
        assert_eq!((cache.len(), cache.counts().uncached), (2, 1));
        drop(cache);
        for (n, page) in held.iter().enumerate() {
            shared.slice(n * 4096, 1).unwrap().copy_from(&[n as u8 + 1][..]);
            let mut byte = [0u8];
            page.slice(0, 0, 1).unwrap().copy_to(&mut byte[..]);
            assert_eq!(byte, [n as u8 + 1]);
        }
        drop(held);
        shared.end().expect("all is unmapped");
    }

    #[test]
    fn get_of_an_invalid_reference_caches_nothing() {
        let (_sandbox, shared, mut cache) = setup(2, 1);
        assert!(cache.get(GrantRef(99_999)).is_err());
        assert!(cache.is_empty());
        cache.get(shared.refs()[0]).unwrap();
        drop(cache);
        shared.end().expect("all is unmapped");
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        /// XSA-371.
        #[test]
        fn cache_in_any_use_keeps_its_bound_and_unmaps_every_page(
            max in 0usize..6,
            steps in proptest::collection::vec((0usize..12, 0usize..10, any::<usize>()), 1..120),
        ) {
            let (_sandbox, shared, mut cache) = setup(max, 8);
            let mut held = Vec::new();
            for (action, page, pick) in steps {
                match action {
                    0..=6 => {
                        // Two of ten references are not granted.
                        let gref = shared.refs().get(page).copied().unwrap_or(GrantRef(9_999));
                        held.extend(cache.get(gref));
                    }
                    7..=9 if !held.is_empty() => drop(held.swap_remove(pick % held.len())),
                    _ => {}
                }
                prop_assert!(cache.len() <= max);
                let counts = cache.counts();
                prop_assert!(counts.misses >= counts.evicted + cache.len() as u64);
            }
            drop((held, cache));
            prop_assert!(shared.end().is_ok(), "a page is still mapped");
        }
    }
}
