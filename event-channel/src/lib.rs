//! Policies over event channels: when to ring, how to wait, and what to do about a peer that rings too often.
//!
//! [`notifier`] is a channel that counts; [`event_set`] waits for several of them; [`pace`] bounds a rate; [`spin`]
//! learns whether looking before sleeping pays. None of them knows what the events are about.

pub mod adaptive_poll;
pub mod event_set;
pub mod notifier;

pub use adaptive_poll::AdaptivePoll;
pub use event_loop::TokenBucket;
pub use event_set::EventSet;
pub use notifier::{Counts, Notifier};
