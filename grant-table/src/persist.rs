//! A backend's persistent grants: pages that stay mapped because the frontend uses the same ones again and again.
//!
//! Bounded as Linux's `max_persistent_grants`: what is used least recently is unmapped for what comes new, except
//! what a request is using. Whatever cannot be kept is mapped for its request only, so that every mapping is either
//! in the cache or somebody's value, and is unmapped by its last holder's drop (XSA-371: error paths that forgot).

use hypervisor::{Access, DomId, GrantRef, Hypervisor, Mapping, Result};
use lru::LruCache;
use std::sync::Arc;

/// Pages of one frontend that Linux's backend keeps mapped a ring, `xen_blkif_max_pgrants`.
pub const LINUX_MAX: usize = 1056;

/// A page that is mapped while any holder of it lives.
pub type Page = Arc<Mapping>;

/// How often what was asked for was mapped already.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Counts {
    /// It was.
    pub hits: u64,
    /// It was not, and is kept now.
    pub misses: u64,
    /// It was not, and there was no room to keep it.
    pub passing: u64,
    /// It was kept and made room.
    pub evicted: u64,
}

/// Mapped pages of one frontend, for reading and writing, by reference.
pub struct Cache {
    hypervisor: Arc<dyn Hypervisor>,
    peer: DomId,
    max: usize,
    pages: LruCache<GrantRef, Page>,
    counts: Counts,
}

impl Cache {
    /// Keeps at most `max` pages of `peer` mapped.
    pub fn new(hypervisor: Arc<dyn Hypervisor>, peer: DomId, max: usize) -> Self {
        Self { hypervisor, peer, max, pages: LruCache::unbounded(), counts: Counts::default() }
    }

    /// Pages that are kept.
    pub fn len(&self) -> usize {
        self.pages.len()
    }

    /// Whether none is.
    pub fn is_empty(&self) -> bool {
        self.pages.is_empty()
    }

    /// What happened so far.
    pub fn counts(&self) -> Counts {
        self.counts
    }

    /// The page of `gref`, mapped.
    ///
    /// # Errors
    /// As [`Hypervisor::map`]; nothing is kept then.
    pub fn get(&mut self, gref: GrantRef) -> Result<Page> {
        if let Some(page) = self.pages.get(&gref) {
            self.counts.hits += 1;
            return Ok(page.clone());
        }
        let page = Arc::new(self.hypervisor.map(self.peer, &[gref], Access::ReadWrite)?);
        if self.make_room() {
            self.counts.misses += 1;
            self.pages.put(gref, page.clone());
        } else {
            self.counts.passing += 1;
        }
        Ok(page)
    }

    /// Whether one more page may be kept, after dropping one that nobody uses.
    fn make_room(&mut self) -> bool {
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

    fn world(max: usize, pages: usize) -> (Sandbox, Shared, Cache) {
        let sandbox = Sandbox::new().unwrap();
        let guest = sandbox.join(GUEST).unwrap();
        let shared = guest.share(DomId::DOM0, pages, Access::ReadWrite).unwrap();
        let cache = Cache::new(sandbox.join(DomId::DOM0).unwrap(), GUEST, max);
        (sandbox, shared, cache)
    }

    #[test]
    fn the_least_recently_used_makes_room() {
        let (_sandbox, shared, mut cache) = world(2, 3);
        let [a, b, c] = [0, 1, 2].map(|n| shared.refs()[n]);
        for gref in [a, b, a, c, a] {
            cache.get(gref).unwrap();
        }
        assert_eq!(cache.counts(), Counts { hits: 2, misses: 3, passing: 0, evicted: 1 });
        cache.get(b).unwrap();
        assert_eq!(cache.counts().misses, 4, "b made room for c");
    }

    #[test]
    fn pages_in_use_are_not_unmapped() {
        let (_sandbox, shared, mut cache) = world(2, 3);
        let held: Vec<_> = shared.refs().iter().map(|gref| cache.get(*gref).unwrap()).collect();
        assert_eq!((cache.len(), cache.counts().passing), (2, 1));
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
    fn errors_leave_nothing_behind() {
        let (_sandbox, shared, mut cache) = world(2, 1);
        assert!(cache.get(GrantRef(99_999)).is_err());
        assert!(cache.is_empty());
        cache.get(shared.refs()[0]).unwrap();
        drop(cache);
        shared.end().expect("all is unmapped");
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        /// XSA-371: whatever is asked for and dropped in whatever order, the bound holds and all is unmapped.
        #[test]
        fn every_mapping_is_accounted_for(
            max in 0usize..6,
            steps in proptest::collection::vec((0usize..12, 0usize..10, any::<usize>()), 1..120),
        ) {
            let (_sandbox, shared, mut cache) = world(max, 8);
            let mut held = Vec::new();
            for (action, page, pick) in steps {
                match action {
                    0..=6 => {
                        // Two of ten are references that nobody granted.
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
            prop_assert!(shared.end().is_ok(), "a mapping was forgotten");
        }
    }
}
