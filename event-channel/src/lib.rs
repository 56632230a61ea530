//! Policies over event channels: when to ring, how to wait, and what to do about a peer that rings too often.
//!
//! [`doorbell`] is a channel that counts; [`ear`] waits for several of them; [`pace`] bounds a rate; [`spin`] learns
//! whether looking before sleeping pays. None of them knows what the events are about.

pub mod doorbell;
pub mod ear;
pub mod pace;
pub mod spin;

pub use doorbell::{Counts, Doorbell};
pub use ear::Ear;
pub use pace::Bucket;
pub use spin::Spin;
