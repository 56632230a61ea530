// Not a core: does I/O or calls a hypervisor.

//! The pages of a disk's rings, over all its connections: a backend that connects again and again, and keeps mapped what it
//! was granted, uses up no more of them.
//!
//! A connection's ring has other pages than the one before, as backends tell a new ring from a predecessor's by its keys: there
//! are two for each size, used in turn.

use grant_table::{Access, GrantTable, Result, Shared};
use ring_abi::DomId;
use std::collections::VecDeque;

/// Rings of one size, at most.
const RINGS: usize = 2;

/// The pages of rings that are not in use, those of the latest connection last.
#[derive(Debug, Default)]
pub(crate) struct RingPages {
    unused: VecDeque<Shared>,
}

impl RingPages {
    /// Returns the pages of a new ring.
    ///
    /// # Errors
    /// Those of [`GrantTable::share`].
    pub(crate) fn take(&mut self, grants: &dyn GrantTable, peer: DomId, pages: usize) -> Result<Shared> {
        // Pages whose backend's domain has died are nobody's any more.
        self.unused.retain(Shared::is_live);
        let of_this_size = |shared: &Shared| shared.pages() == pages;
        if self.unused.iter().filter(|shared| of_this_size(shared)).count() >= RINGS
            && let Some(oldest) = self.unused.iter().position(of_this_size)
            && let Some(shared) = self.unused.remove(oldest)
        {
            return Ok(shared);
        }
        grants.share(peer, pages, Access::ReadWrite)
    }

    /// Gives back the pages of a ring that is not in use any more.
    pub(crate) fn give_back(&mut self, ring: Option<Shared>) {
        self.unused.extend(ring);
    }
}
