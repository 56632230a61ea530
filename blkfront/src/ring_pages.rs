// Not a core: does I/O or calls a hypervisor.

//! The pages of a disk's rings, over all its connections: a backend that connects again and again, and keeps mapped what it
//! was granted, uses up no more of them.
//!
//! A connection's ring has other pages than the one before, as backends tell a new ring from a predecessor's by its keys: there
//! are two sets for each size, used in turn.

use grant_table::{Access, GrantTable, Result, Shared};
use ring_abi::DomId;
use std::collections::VecDeque;

/// The pages of rings that are not in use, those of the latest connection last.
#[derive(Debug, Default)]
pub(crate) struct RingPages {
    unused: VecDeque<Shared>,
    /// How many are those of the latest connection.
    latest: usize,
}

impl RingPages {
    /// Returns the pages of `count` new rings, each of so many.
    ///
    /// # Errors
    /// Those of [`GrantTable::share`].
    pub(crate) fn take(
        &mut self,
        grants: &dyn GrantTable,
        peer: DomId,
        pages: usize,
        count: usize,
    ) -> Result<Vec<Shared>> {
        // Pages whose backend's domain has died are nobody's any more.
        self.unused.retain(Shared::is_live);
        let of_this_size = |shared: &Shared| shared.pages() == pages;
        let all = self.unused.iter().filter(|shared| of_this_size(shared)).count();
        let mut rings = Vec::with_capacity(count);
        for _ in 0..all.saturating_sub(self.latest).min(count) {
            let oldest = self.unused.iter().position(of_this_size);
            rings.extend(oldest.and_then(|oldest| self.unused.remove(oldest)));
        }
        while rings.len() < count {
            match grants.share(peer, pages, Access::ReadWrite) {
                Ok(shared) => rings.push(shared),
                Err(error) => {
                    // They are older than all others.
                    rings.into_iter().rev().for_each(|shared| self.unused.push_front(shared));
                    return Err(error);
                }
            }
        }
        Ok(rings)
    }

    /// Gives back the pages of a connection's rings, which are not in use any more.
    pub(crate) fn give_back(&mut self, rings: Vec<Shared>) {
        if !rings.is_empty() {
            self.latest = rings.len();
        }
        self.unused.extend(rings);
    }
}
