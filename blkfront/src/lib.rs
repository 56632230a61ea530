//! Block frontend: a guest's side of a virtual block device.
//!
//! [`queue`] and [`handshake`] are cores, values without I/O: with `--no-default-features` they are all there is,
//! `no_std` with `alloc`, for kernels that bring their own hypervisor. [`Disk`] is a device over a
//! [`hypervisor::Hypervisor`], owned by one thread.
#![cfg_attr(not(feature = "std"), no_std)]

extern crate alloc;

#[cfg(feature = "std")]
pub mod buffer;
#[cfg(feature = "std")]
pub mod device;
#[cfg(feature = "std")]
mod error;
pub mod handshake;
#[cfg(any(test, fuzzing))]
pub mod harness;
#[cfg(feature = "std")]
mod process_events;
pub mod queue;
#[cfg(feature = "std")]
mod sync;
pub mod table;

#[cfg(feature = "std")]
pub use buffer::Buffer;
#[cfg(feature = "std")]
pub use device::{Completion, Disk, Options, Request};
#[cfg(feature = "std")]
pub use error::{Error, Result};
pub use handshake::Info;
pub use queue::Op;
