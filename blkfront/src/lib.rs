//! Block frontend: a guest's side of a virtual block device.
//!
//! [`queue`], [`mod@split`] and [`handshake`] are cores, values without I/O: `--no-default-features` leaves only these,
//! `no_std` with `alloc`, for kernels with a hypervisor interface of their own. [`Disk`] is a device over a
//! [`grant_table::GrantTable`], used by one thread at a time; it has an example.
#![cfg_attr(not(feature = "std"), no_std)]

extern crate alloc;

#[cfg(feature = "std")]
pub mod buffer;
#[cfg(feature = "std")]
mod connection;
#[cfg(feature = "std")]
pub mod device;
#[cfg(feature = "std")]
mod error;
pub mod handshake;
#[cfg(any(test, fuzzing))]
pub mod harness;
pub mod queue;
pub mod split;
#[cfg(feature = "std")]
mod sync;
pub mod table;

#[cfg(feature = "std")]
pub use buffer::Buffer;
#[cfg(feature = "std")]
pub use device::{Completion, Disk, Options, Request};
#[cfg(feature = "std")]
pub use error::{Error, Result};
pub use handshake::Negotiated;
pub use queue::Operation;
pub use split::split;
