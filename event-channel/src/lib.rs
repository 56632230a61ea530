//! Event channels: the interface by which domains notify each other, and policies over it.
//!
//! [`EventChannels`] and [`Channel`] are what a hypervisor implements: the crate `hypervisor` has two implementations, and a
//! kernel or unikernel brings its own. A program waits for channels that have a descriptor ([`WaitChannel`]). A
//! [`Notifier`] is one end of a channel that notifies once a batch, and masks a peer that sends too many events; a
//! [`NotifierPair`] is that for a device with two rings and one channel or two, [`Notifiers`] for one with several queues.
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
//! All this needs an allocator and no std. The default feature `std` adds [`WaitChannel`], and notifiers in an
//! [`EventSet`](event_loop::EventSet).
#![cfg_attr(not(feature = "std"), no_std)]

extern crate alloc;

mod channel;
mod error;
#[cfg(feature = "std")]
mod event_set;
pub mod notifier;
mod notifiers;
mod pair;
#[cfg(feature = "std")]
mod wait;

pub use channel::{Channel, EventChannels};
pub use error::{Error, Result};
pub use notifier::Notifier;
pub use notifiers::Notifiers;
pub use pair::NotifierPair;
#[cfg(feature = "std")]
pub use wait::{WaitChannel, WaitEventChannels};
