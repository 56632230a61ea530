// Not a core: does I/O or calls a hypervisor.

//! The media of a driver's disks, and the gate of each ring: it holds operations back that the ring may not have at its medium yet,
//! as other rings want a share of it ([`crate::shares`]).

use std::collections::{HashMap, VecDeque};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::Duration;

use nix::time::ClockId;
use ring_abi::DomId;

use crate::engine::{IoRequest, MediumId};
use crate::shares::{Member, Shares};

type Known = Arc<Mutex<HashMap<MediumId, Weak<Medium>>>>;

/// The media in use.
#[derive(Clone, Default)]
pub(crate) struct Media(Known);

/// One medium, and the rings that use it.
struct Medium {
    id: MediumId,
    known: Known,
    rings: AtomicUsize,
    shares: Mutex<Shares>,
}

/// The gate of one ring. Of a disk that shares no medium it holds nothing back.
#[derive(Default)]
pub(crate) struct Gate {
    ring: Option<Ring>,
    /// Operations that are held back, in the order in which they came.
    held: VecDeque<IoRequest>,
}

/// A ring's part in its medium, which ends when this is dropped.
struct Ring {
    medium: Arc<Medium>,
    member: Member,
}

impl Media {
    /// The gate of a guest's ring whose disk is on that medium, if it shares one.
    pub(crate) fn gate(&self, owner: DomId, id: Option<MediumId>) -> Gate {
        let ring = id.map(|id| {
            let mut known = lock(&self.0);
            let medium = known.get(&id).and_then(Weak::upgrade).unwrap_or_else(|| {
                let rings = AtomicUsize::new(0);
                let medium = Arc::new(Medium { id, known: self.0.clone(), rings, shares: Mutex::default() });
                known.insert(id, Arc::downgrade(&medium));
                medium
            });
            drop(known);
            let member = lock(&medium.shares).join(owner);
            medium.rings.fetch_add(1, Ordering::Relaxed);
            Ring { medium, member }
        });
        Gate { ring, held: VecDeque::new() }
    }
}

impl Gate {
    /// Whether operations are held back, or may be: [`Gate::pass`] is to be called whenever the number of operations has changed.
    #[inline]
    pub(crate) fn is_shared(&self) -> bool {
        self.ring.as_ref().is_some_and(|ring| ring.medium.rings.load(Ordering::Relaxed) > 1)
            || !self.held.is_empty()
    }

    /// Holds back those of `ready` that the ring may not have at the medium yet, and adds those that it may have now. `in_engine` are all
    /// that are not handed back, those in `ready` and those held back included. Something is held back only while the ring has other operations at the medium.
    #[inline]
    pub(crate) fn pass(&mut self, ready: &mut Vec<IoRequest>, in_engine: usize) {
        // One that has just come makes no difference to what is at the medium already: that is seen by the next batch.
        if self.is_shared()
            && let Some(ring) = &self.ring
        {
            let window = lock(&ring.medium.shares).window(ring.member, in_engine, monotonic());
            self.share(ready, in_engine, window);
        }
    }

    #[cold]
    fn share(&mut self, ready: &mut Vec<IoRequest>, in_engine: usize, window: usize) {
        self.held.extend(ready.drain(..));
        let at_medium = in_engine.saturating_sub(self.held.len());
        let free = window.saturating_sub(at_medium).min(self.held.len());
        ready.extend(self.held.drain(..free));
    }
}

impl Drop for Ring {
    fn drop(&mut self) {
        self.medium.rings.fetch_sub(1, Ordering::Relaxed);
        lock(&self.medium.shares).leave(self.member);
    }
}

impl Drop for Medium {
    fn drop(&mut self) {
        let mut known = lock(&self.known);
        // Another may be there already, of a ring that came meanwhile.
        if known.get(&self.id).is_some_and(|medium| medium.strong_count() == 0) {
            known.remove(&self.id);
        }
    }
}

/// The time of the monotonic clock.
fn monotonic() -> Duration {
    ClockId::CLOCK_MONOTONIC.now().map(Duration::from).unwrap_or_default()
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn medium_that_no_ring_uses_is_forgotten() {
        let media = Media::default();
        let id = MediumId::new(7, 0);
        let gate = |id| media.gate(DomId(1), Some(id));
        let gates = [gate(id), gate(id), gate(MediumId::new(8, 0))];
        assert_eq!(lock(&media.0).len(), 2);
        assert_eq!(gates[0].ring.as_ref().unwrap().medium.rings.load(Ordering::Relaxed), 2);
        drop(gates);
        assert!(lock(&media.0).is_empty());
        assert!(media.gate(DomId(1), None).ring.is_none());
    }
}
