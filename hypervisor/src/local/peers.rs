//! Which arenas of peers this domain has mapped: read by every map and copy, changed when a peer comes or goes.

use super::remote::Remote;
use arc_swap::ArcSwap;
use ring_abi::DomId;
use std::sync::Arc;

/// A fixed set of mapped arenas, sorted by owner.
#[derive(Clone, Default)]
pub(super) struct Known(Vec<Arc<Remote>>);

impl Known {
    /// The arena of `owner`, retired or not.
    #[inline]
    pub(super) fn get(&self, owner: DomId) -> Option<&Arc<Remote>> {
        // Few peers is the common case of a guest, and many that of domain 0.
        let at = self.0.binary_search_by_key(&owner, |remote| remote.owner).ok()?;
        Some(&self.0[at])
    }
}

/// The set, which can be replaced while others read it.
#[derive(Default)]
pub(super) struct Peers(ArcSwap<Known>);

impl Peers {
    /// The set as it is now.
    #[inline]
    pub(super) fn now(&self) -> arc_swap::Guard<Arc<Known>> {
        self.0.load()
    }

    /// The arena of `owner`, if it is mapped and not retired.
    #[inline]
    pub(super) fn live(&self, owner: DomId) -> Option<Arc<Remote>> {
        self.now().get(owner).filter(|remote| !remote.arena.is_retired()).cloned()
    }

    /// Whether that is there.
    #[inline]
    pub(super) fn is_live(&self, owner: DomId) -> bool {
        self.now().get(owner).is_some_and(|remote| !remote.arena.is_retired())
    }

    /// Adds an arena, in place of an older one of the same owner, and forgets retired ones: what is still mapped of
    /// them keeps them.
    pub(super) fn put(&self, remote: Arc<Remote>) {
        self.0.rcu(|known| {
            let keep = |r: &&Arc<Remote>| r.owner != remote.owner && !r.arena.is_retired();
            let mut next: Vec<_> = known.0.iter().filter(keep).cloned().collect();
            next.push(remote.clone());
            next.sort_by_key(|remote| remote.owner);
            Known(next)
        });
    }
}
