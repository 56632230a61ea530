//! Policies over event channels: a [`Notifier`] is one end of a channel that notifies once a batch, and masks a peer that
//! sends too many events; a [`NotifierPair`] is that for a device with two rings and one channel or two.

pub mod notifier;
mod pair;
mod waiting;

pub use notifier::{Counts, Notifier};
pub use pair::NotifierPair;
