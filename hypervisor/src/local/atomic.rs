//! The atomics of grant entries and of the balloon queue, which two domains share. `tests/loom.rs` has the model checker's instead.

pub(super) use std::sync::atomic::{AtomicU32, Ordering};
