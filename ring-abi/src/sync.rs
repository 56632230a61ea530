//! The atomics and barriers of the rings: `core`'s, or loom's when the notification protocol is being model-checked.

#[cfg(not(loom))]
pub(crate) use core::sync::atomic::{AtomicU32, Ordering, fence};
#[cfg(loom)]
pub(crate) use loom::sync::atomic::{AtomicU32, Ordering, fence};

/// Every ordering that the rings rely on. Each is a fence, as in ring.h, between relaxed accesses.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
pub enum Barrier {
    /// What a slot holds is seen before the producer index that covers it: `xen_wmb` of `RING_PUSH_*`.
    Publish = 1,
    /// A slot is read only after the producer index that covers it: `xen_rmb` after reading it.
    Observe = 2,
    /// The producer index is seen before the event index is read: `xen_mb` of `RING_PUSH_*_AND_CHECK_NOTIFY`.
    Published = 3,
    /// The event index is seen before the producer index is read: `xen_mb` of `RING_FINAL_CHECK_*`. Of this one and
    /// [`Barrier::Published`], if either lacks, both sides can miss each other.
    Armed = 4,
}

impl Barrier {
    /// Makes it so.
    #[inline(always)]
    pub(crate) fn fence(self) {
        #[cfg(loom)]
        if model::broken() == Some(self) {
            return;
        }
        match self {
            Self::Publish => fence(Ordering::Release),
            Self::Observe => fence(Ordering::Acquire),
            Self::Published | Self::Armed => fence(Ordering::SeqCst),
        }
    }
}

/// For the model checker's tests alone: a barrier can be left out, to see the test fail.
#[cfg(loom)]
pub mod model {
    use super::Barrier;
    use core::sync::atomic::{AtomicU8, Ordering};

    static BROKEN: AtomicU8 = AtomicU8::new(0);

    /// Leaves out one barrier in all rings, or none.
    pub fn leave_out(barrier: Option<Barrier>) {
        BROKEN.store(barrier.map_or(0, |b| b as u8), Ordering::SeqCst);
    }

    pub(super) fn broken() -> Option<Barrier> {
        let all = [Barrier::Publish, Barrier::Observe, Barrier::Published, Barrier::Armed];
        all.into_iter().find(|b| *b as u8 == BROKEN.load(Ordering::SeqCst))
    }
}
