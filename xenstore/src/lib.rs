//! Xenstore: a client of the wire protocol ([`Client`]) and the store itself ([`server`]).
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

pub mod client;
mod permission;
pub mod server;
pub mod wire;

pub use client::{Client, Error, Nodes, Transaction, WatchEvent};
pub use event_loop::Stream;
pub use permission::{Access, Permission};
pub use ring_abi::DomId;
pub use ring_abi::xs_wire::XsError;
