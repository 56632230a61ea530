//! A backend's persistent grants: pages that stay mapped because the frontend uses the same ones again and again.
//!
//! A cache is bounded, as by Linux's `max_persistent_grants`, and all caches of a process by a [`PageBudget`]: on Linux each
//! page is a mapping of its own, of which a process has at most `vm.max_map_count`. A page for which there is no space is
//! not mapped: its request is copied. Now and then the least recently used page that no request uses gives way to such a
//! one, so that a working set larger than the space is not mapped and unmapped in a circle. What is not used for a while is given
//! back, as by Linux's `persistent_grant_unused_seconds`. Every mapping is owned by the cache or by a request, and unmapped when its last owner drops it (XSA-371: error paths that did not unmap).

use crate::{Access, GrantTable, Mapping, Result};
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::fmt;
use core::sync::atomic::{AtomicUsize, Ordering};
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
    /// Requested pages that were not mapped, for want of space.
    pub refused: u64,
    /// Pages unmapped in favour of others, or as nobody used them.
    pub evicted: u64,
}

/// Of so many pages for which there is no space, one takes the place of another.
const WITHOUT_SPACE_AN_EVICTION: u64 = 32;

/// A cache may have a page more while it has fewer than this part of the free ones.
const SHARE: usize = 8;

/// Pages that the caches of a process may keep mapped together; clones share them.
///
/// A cache may have as many pages as an eighth of the free ones, and one that has a quarter more gives one back with each use. So a
/// later one finds some however many the earlier ones want, and those that are used come to have equally many.
#[derive(Clone, Debug)]
pub struct PageBudget {
    max: usize,
    used: Arc<AtomicUsize>,
}

impl PageBudget {
    /// A budget of so many pages.
    pub fn new(max: usize) -> PageBudget {
        PageBudget { max, used: Arc::default() }
    }

    /// Pages in use.
    pub fn used(&self) -> usize {
        self.used.load(Ordering::Relaxed)
    }

    fn share(&self, used: usize) -> usize {
        self.max.saturating_sub(used).div_ceil(SHARE)
    }

    /// Takes a page for a cache that has `own` pages; `false` if it has its share.
    fn take(&self, own: usize) -> bool {
        let more = |used: usize| (own < self.share(used)).then_some(used + 1);
        self.used.fetch_update(Ordering::Relaxed, Ordering::Relaxed, more).is_ok()
    }

    fn is_exceeded(&self, own: usize) -> bool {
        let share = self.share(self.used());
        own > share + share / 4 + 1
    }

    fn give_back(&self, pages: usize) {
        self.used.fetch_sub(pages, Ordering::Relaxed);
    }
}

/// Mapped pages of one frontend, for reading and writing, by reference.
///
/// ```
/// use grant_table::persist::{PageBudget, PersistentCache};
/// use grant_table::{Access, GrantTable};
/// use hypervisor::local::Sandbox;
/// use ring_abi::DomId;
///
/// let sandbox = Sandbox::new()?;
/// let guest = sandbox.join(DomId(1))?;
/// let shared = guest.share(DomId::DOM0, 1, Access::ReadWrite)?;
/// let budget = PageBudget::new(32_000);
/// let mut cache = PersistentCache::new(sandbox.join(DomId::DOM0)?, DomId(1), 8, budget.clone());
/// assert!(cache.get(shared.refs()[0])?.is_some(), "mapped");
/// assert!(cache.get(shared.refs()[0])?.is_some(), "still mapped");
/// assert_eq!(budget.used(), 1);
/// assert_eq!((cache.counts().misses, cache.counts().hits), (1, 1));
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub struct PersistentCache {
    grants: Arc<dyn GrantTable>,
    peer: DomId,
    max: usize,
    budget: PageBudget,
    pages: LruCache<GrantRef, Entry>,
    /// Calls of [`PersistentCache::give_back_unused`] so far.
    period: u32,
    /// Pages asked for without there being space.
    without_space: u64,
    counts: Counts,
}

/// A page, and the period in which it was used last.
struct Entry {
    page: Page,
    period: u32,
}

impl Entry {
    /// Whether no request uses it now.
    fn is_idle(&self) -> bool {
        Arc::strong_count(&self.page) == 1
    }
}

impl PersistentCache {
    /// Creates a cache of at most `max` pages of `peer`, which are part of `budget`.
    pub fn new(grants: Arc<dyn GrantTable>, peer: DomId, max: usize, budget: PageBudget) -> Self {
        Self {
            grants,
            peer,
            max,
            budget,
            pages: LruCache::unbounded(),
            period: 0,
            without_space: 0,
            counts: Counts::default(),
        }
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

    /// Returns the page of `gref`, which is mapped if it is not cached; `None` if there is no space for it.
    ///
    /// # Errors
    /// As [`GrantTable::map`].
    pub fn get(&mut self, gref: GrantRef) -> Result<Option<Page>> {
        if self.budget.is_exceeded(self.pages.len()) && self.evict() {
            self.budget.give_back(1);
        }
        if let Some(entry) = self.pages.get_mut(&gref) {
            entry.period = self.period;
            self.counts.hits += 1;
            return Ok(Some(entry.page.clone()));
        }
        if !self.take_space() {
            self.counts.refused += 1;
            return Ok(None);
        }
        let mapped = self.grants.map(self.peer, &[gref], Access::ReadWrite);
        let page = Arc::new(mapped.inspect_err(|_| self.budget.give_back(1))?);
        self.counts.misses += 1;
        self.pages.put(gref, Entry { page: page.clone(), period: self.period });
        Ok(Some(page))
    }

    /// Unmaps the pages that no request has used since the call before, and uses now. Called at equal intervals, each page is
    /// unmapped one to two of them after its last use.
    pub fn give_back_unused(&mut self) {
        let is_unused = |entry: &Entry| entry.is_idle() && entry.period != self.period;
        let unused: Vec<GrantRef> =
            self.pages.iter().filter(|(_, entry)| is_unused(entry)).map(|(gref, _)| *gref).collect();
        for gref in &unused {
            self.pages.pop(gref);
        }
        self.counts.evicted += unused.len() as u64;
        self.budget.give_back(unused.len());
        self.period = self.period.wrapping_add(1);
    }

    /// Takes space for a page from the budget, or, now and then, from an unused page.
    fn take_space(&mut self) -> bool {
        if self.pages.len() < self.max && self.budget.take(self.pages.len()) {
            return true;
        }
        self.without_space += 1;
        if !self.without_space.is_multiple_of(WITHOUT_SPACE_AN_EVICTION) {
            return false;
        }
        self.evict()
    }

    /// Unmaps the least recently used page that no request uses, if there is one; its space is the caller's.
    fn evict(&mut self) -> bool {
        let idle = self.pages.iter().rev().find(|(_, entry)| entry.is_idle());
        let Some(gref) = idle.map(|(gref, _)| *gref) else { return false };
        self.counts.evicted += 1;
        self.pages.pop(&gref).is_some()
    }
}

impl Drop for PersistentCache {
    fn drop(&mut self) {
        let pages = self.pages.len();
        self.pages.clear();
        self.budget.give_back(pages);
    }
}

impl fmt::Debug for PersistentCache {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "PersistentCache({} of at most {} pages of domain {})", self.len(), self.max, self.peer)
    }
}
