//! Xenstore, three ways: a client that speaks the wire ([`Client`]), the xenbus handshake that drivers build
//! on it ([`xenbus`]), and the store itself ([`server`]).
//!
//! Without the default feature `std` only [`xenbus::keys`] remains, which is all that a driver's handshake core
//! needs.
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
pub use client::{Client, Error, Nodes, Stream, Transaction, WatchEvent};
#[cfg(feature = "std")]
pub use permission::{Access, Permission};
pub use ring_abi::xenbus::XenbusState;
pub use ring_abi::xs_wire::XsError;
pub use xenbus::keys::{KeyError, Keys};

/// A domain's number.
pub type DomId = u16;
