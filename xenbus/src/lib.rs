//! Xenbus: a device's two ends in the store. [`Device`] has their paths, [`Keys`] their keys; [`DeviceEnd`] reads and
//! writes keys and states of one end. [`handshake`] has the machines of both ends, as values without I/O; [`driver`] is the
//! control loop of backends, [`frontend`] that of frontends, over a [`StoreLink`], which outlives the store's connection; and
//! [`stats`] is what all drivers count.
//!
//! What a driver negotiates takes the [`Keys`] of both ends and returns those to write:
//!
//! ```
//! use ring_abi::DomId;
//! use xenbus::{Device, Keys};
//!
//! let device = Device::new("vbd", DomId(3), 51712);
//! assert_eq!(device.front_path(), "/local/domain/3/device/vbd/51712");
//!
//! let keys = Keys::new(device.front_path()).with("ring-ref", 8);
//! assert_eq!(keys.need("ring-ref"), Ok(8));
//! ```
//!
//! Without the default feature `std` [`handshake`], [`Keys`], [`Device`] and [`stats`] remain, which is all that a driver's
//! cores need.
#![cfg_attr(not(feature = "std"), no_std)]

extern crate alloc;

mod device;
#[cfg(feature = "std")]
mod device_end;
mod device_state;
#[cfg(feature = "std")]
pub mod driver;
#[cfg(feature = "std")]
pub mod error_node;
#[cfg(feature = "std")]
pub mod frontend;
pub mod handshake;
#[cfg(feature = "std")]
mod instance;
pub mod keys;
#[cfg(feature = "std")]
mod read_tree;
pub mod stats;
#[cfg(feature = "std")]
mod store_link;

pub use device::Device;
#[cfg(feature = "std")]
pub use device_end::{Change, DeviceEnd, Expected};
pub use device_state::{DeviceState, Failure, Update};
pub use keys::{KeyError, Keys};
#[cfg(feature = "std")]
pub use read_tree::{read_known, read_tree};
pub use ring_abi::xenbus::XenbusState;
#[cfg(feature = "std")]
pub use store_link::{LinkEvent, StoreLink};
