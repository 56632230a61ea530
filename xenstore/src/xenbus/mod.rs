//! The xenbus handshake: where a device's two ends have their keys, how each end writes and reads states, and how
//! errors are reported. Handshake cores, which do no I/O, take [`keys::Keys`]; [`DeviceEnd`] does the I/O.

mod device;
#[cfg(feature = "std")]
mod device_end;
pub mod keys;
#[cfg(feature = "std")]
mod read_tree;

pub use device::Device;
#[cfg(feature = "std")]
pub use device_end::DeviceEnd;
#[cfg(feature = "std")]
pub use read_tree::read_tree;
