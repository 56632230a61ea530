//! The atomics of grant entries and of the balloon queue, which two domains share. `tests/loom.rs` has the model checker's instead.

pub(super) use std::sync::atomic::{AtomicU32, Ordering};

/// As in Xen's `grant_entry_v1`.
const _: () = assert!(size_of::<super::entry::Entry>() == 8);
