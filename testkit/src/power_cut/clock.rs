//! The moments of a disk and of its users, in one order.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// Numbers the moments of a disk and of its users: each call returns a later one.
#[derive(Clone, Debug, Default)]
pub struct Clock(Arc<AtomicU64>);

impl Clock {
    /// A moment later than all that were returned before.
    pub fn now(&self) -> u64 {
        self.0.fetch_add(1, Ordering::SeqCst) + 1
    }
}
