//! Network frontend: a guest's side of a vif.
//!
//! [`Nic`] is the interface. Below it stand the cores, values that do no I/O: [`tx`] and [`rx`] are the two rings,
//! [`handshake`] decides what the two ends say to each other. Without the default feature `std` only the cores
//! remain, which need `alloc` and no operating system.
#![cfg_attr(not(feature = "std"), no_std)]

extern crate alloc;

pub mod csum;
pub mod handshake;
pub mod rx;
pub mod tx;

#[cfg(feature = "std")]
mod link;
#[cfg(feature = "std")]
mod meta;
#[cfg(feature = "std")]
mod nic;
#[cfg(feature = "std")]
mod pool;

#[cfg(feature = "std")]
pub use link::{Broken, Counters};
#[cfg(feature = "std")]
pub use meta::{Gso, Meta};
#[cfg(feature = "std")]
pub use nic::{Config, Error, Nic, Sent};
