//! The atomics of cached blocks. `tests/loom.rs` has the model checker's instead.

pub(super) use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
