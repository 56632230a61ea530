//! Policies over event channels: when to notify, how to wait, and how to bound a peer that sends too many events.
//!
//! [`notifier`] is one end of a channel that notifies once a batch and counts spurious events; [`event_set`] waits
//! for several descriptors; [`TokenBucket`] bounds a rate; [`adaptive_poll`] learns whether polling before sleeping
//! pays. None of them knows what the events mean.

pub mod adaptive_poll;
pub mod event_set;
pub mod notifier;

pub use adaptive_poll::AdaptivePoll;
pub use event_loop::TokenBucket;
pub use event_set::EventSet;
pub use notifier::{Counts, Notifier};
