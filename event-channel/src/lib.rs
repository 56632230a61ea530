//! Policies over event channels: [`Notifier`] is one end of a channel that notifies once a batch, and bounds a peer that
//! sends too many events.

pub mod notifier;

pub use notifier::{Counts, Notifier};
