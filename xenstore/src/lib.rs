//! Xenstore: a client of the wire protocol ([`Client`]), the xenbus handshake that drivers build on it ([`xenbus`],
//! [`driver`]), and the store itself ([`server`]).
//!
//! ```
//! use std::os::unix::net::UnixStream;
//! use xenstore::server::{Config, Store};
//! use xenstore::{Client, DomId, Nodes};
//!
//! let store = Store::spawn(Config::default())?;
//! let mut dom0 = store.client()?;
//! dom0.write("/local/domain/0/name", "Domain-0")?;
//! assert_eq!(dom0.read_text("name")?, "Domain-0");
//!
//! let (guest, store_end) = UnixStream::pair()?;
//! store.introduce(DomId(1), store_end)?;
//! assert!(Client::new(guest).read("/local/domain/0/name").is_err());
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! Without the default feature `std` only [`xenbus::keys`] and [`xenbus::Device`] remain, which is all that a driver's
//! handshake core needs.
#![cfg_attr(not(feature = "std"), no_std)]

extern crate alloc;

#[cfg(feature = "std")]
pub mod client;
#[cfg(feature = "std")]
pub mod driver;
#[cfg(feature = "std")]
mod permission;
#[cfg(feature = "std")]
pub mod server;
#[cfg(feature = "std")]
pub mod wire;
pub mod xenbus;

#[cfg(feature = "std")]
pub use client::{Client, Error, Nodes, Transaction, WatchEvent};
#[cfg(feature = "std")]
pub use event_loop::Stream;
#[cfg(feature = "std")]
pub use permission::{Access, Permission};
pub use ring_abi::DomId;
pub use ring_abi::xenbus::XenbusState;
pub use ring_abi::xs_wire::XsError;
pub use xenbus::keys::{KeyError, Keys};
