//! A backend's persistent grants: pages that stay mapped because the frontend uses the same ones again and again.
//!
//! The cache is bounded, as Linux's `max_persistent_grants`: the least recently used page that no request uses is
//! unmapped for a new one. A page for which there is no space is mapped for its request only. So every mapping is
//! owned by the cache or by a request, and unmapped when its last owner drops it (XSA-371: error paths that did not
//! unmap).

use crate::{Access, GrantTable, Mapping, Result};
use alloc::sync::Arc;
use core::fmt;
use lru::LruCache;
use ring_abi::{DomId, GrantRef};

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
/// use grant_table::{Access, GrantTable, PersistentCache};
/// use hypervisor::local::Sandbox;
/// use ring_abi::DomId;
///
/// let sandbox = Sandbox::new()?;
/// let guest = sandbox.join(DomId(1))?;
/// let shared = guest.share(DomId::DOM0, 1, Access::ReadWrite)?;
/// let mut cache = PersistentCache::new(sandbox.join(DomId::DOM0)?, DomId(1), 8);
/// drop(cache.get(shared.refs()[0])?);
/// drop(cache.get(shared.refs()[0])?);
/// assert_eq!((cache.counts().misses, cache.counts().hits), (1, 1));
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub struct PersistentCache {
    grants: Arc<dyn GrantTable>,
    peer: DomId,
    max: usize,
    pages: LruCache<GrantRef, Page>,
    counts: Counts,
}

impl PersistentCache {
    /// Creates a cache of at most `max` pages of `peer`.
    pub fn new(grants: Arc<dyn GrantTable>, peer: DomId, max: usize) -> Self {
        Self { grants, peer, max, pages: LruCache::unbounded(), counts: Counts::default() }
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
    /// As [`GrantTable::map`].
    pub fn get(&mut self, gref: GrantRef) -> Result<Page> {
        if let Some(page) = self.pages.get(&gref) {
            self.counts.hits += 1;
            return Ok(page.clone());
        }
        let page = Arc::new(self.grants.map(self.peer, &[gref], Access::ReadWrite)?);
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

impl fmt::Debug for PersistentCache {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "PersistentCache({} of at most {} pages of domain {})", self.len(), self.max, self.peer)
    }
}
