//! Network frontend: a guest's side of a vif.
//!
//! [`Nic`] is the interface. The modules below it are values that do no I/O: [`tx`] and [`rx`] are the two rings, and
//! [`handshake`] decides how both ends connect and disconnect. Without the default feature `std` only these are built;
//! they need `alloc` and no operating system.
//!
//! ```
//! # #[cfg(feature = "std")]
//! # mod example {
//! use event_channel::WaitEventChannels;
//! use event_loop::Connector;
//! use grant_table::GrantTable;
//! use netfront::{Config, Nic, SendOutcome};
//! use std::{error::Error, sync::Arc, time::Duration};
//!
//! /// Sends one broadcast frame over interface 0 once a backend has connected.
//! fn announce(
//!     grants: Arc<dyn GrantTable>,
//!     channels: Arc<dyn WaitEventChannels>,
//!     store: Arc<dyn Connector>,
//! ) -> Result<(), Box<dyn Error>> {
//!     let mut nic = Nic::open(grants, channels, store, 0, Config::default())?;
//!     while !nic.is_up() {
//!         nic.wait(false, Duration::from_secs(1))?;
//!     }
//!     let mut frame = [0; 60];
//!     frame[..6].fill(0xff);
//!     frame[6..12].copy_from_slice(&nic.mac());
//!     assert_eq!(nic.send(&frame), SendOutcome::Queued);
//!     nic.flush();
//!     Ok(nic.close()?)
//! }
//! # }
//! ```
#![cfg_attr(not(feature = "std"), no_std)]

extern crate alloc;

pub mod handshake;
pub mod rx;
pub mod tx;

#[cfg(feature = "std")]
mod buffer_pool;
#[cfg(feature = "std")]
mod config;
#[cfg(feature = "std")]
mod connection;
#[cfg(feature = "std")]
mod device;
#[cfg(feature = "std")]
mod error;
#[cfg(feature = "std")]
mod meta;
#[cfg(feature = "std")]
mod received;
#[cfg(feature = "std")]
mod rx_buffers;
#[cfg(feature = "std")]
mod stats;

#[cfg(feature = "std")]
pub use config::Config;
#[cfg(feature = "std")]
pub use device::{Nic, SendOutcome};
#[cfg(feature = "std")]
pub use error::{ConnectionError, Error};
#[cfg(feature = "std")]
pub use event_loop::Interest;
#[cfg(feature = "std")]
pub use meta::{Gso, Meta};
#[cfg(feature = "std")]
pub use received::{ReceivedFrame, ReceivedPage};
#[cfg(feature = "std")]
pub use stats::{Counters, DropReason, Stats};
