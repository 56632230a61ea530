//! Event channels: the interface by which domains notify each other, and a policy over it.
//!
//! [`EventChannels`] and [`Channel`] are what a hypervisor implements: the crate `hypervisor` has two implementations, and a
//! kernel or unikernel brings its own. A program waits for channels that have a descriptor ([`WaitChannel`]). A
//! [`Notifier`] is one end of a channel that notifies once a batch, and bounds a peer that sends too many events.
//!
//! ```
//! use event_channel::{Channel, EventChannels};
//! use hypervisor::local::Sandbox;
//! use ring_abi::DomId;
//!
//! let sandbox = Sandbox::new()?;
//! let guest = sandbox.join(DomId(1))?;
//! let dom0 = sandbox.join(DomId::DOM0)?;
//! let unbound = guest.alloc_unbound(DomId::DOM0)?;
//! let bound = dom0.bind_interdomain(DomId(1), unbound.port())?;
//! bound.notify()?;
//! assert!(unbound.take()?);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! The traits need an allocator and no std. The default feature `std` adds [`WaitChannel`] and [`Notifier`].
#![cfg_attr(not(feature = "std"), no_std)]

extern crate alloc;

mod channel;
mod error;
#[cfg(feature = "std")]
pub mod notifier;
#[cfg(feature = "std")]
mod wait;

pub use channel::{Channel, EventChannels};
pub use error::{Error, Result};
#[cfg(feature = "std")]
pub use notifier::{Counts, Notifier};
#[cfg(feature = "std")]
pub use wait::{WaitChannel, WaitEventChannels};
