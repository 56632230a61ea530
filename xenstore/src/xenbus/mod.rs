//! The xenbus handshake, as drivers need it: where a device's two ends keep their keys, how they tell each other
//! their state, and how they report errors. Cores that only compute take [`core::Keys`]; [`End`] does the I/O.

mod device;
#[cfg(feature = "std")]
mod end;
pub mod keys;
#[cfg(feature = "std")]
mod read_tree;

pub use device::Device;
#[cfg(feature = "std")]
pub use end::End;
#[cfg(feature = "std")]
pub use read_tree::gather;
