//! Configuration: an `xl.cfg` for a guest, disks and vifs in xl's syntax, `host.toml` for a host.
//!
//! These are parsers from text to values; each error names the line, the key, the value found and what is valid. A disk or
//! vif is first what xl makes of its text ([`DeviceDisk`], [`DeviceNic`]), and then what is attached ([`DiskSpec`],
//! [`VifSpec`]), where what cannot be had here is refused.

pub mod cfg;
pub mod device_disk;
pub mod device_nic;
pub mod disk;
pub mod disk_limits;
pub mod disk_queues;
pub mod domain;
pub mod guest;
pub mod host;
pub mod host_bridge;
pub mod host_port;
pub mod json;
mod known_keys;
pub mod policy;
pub mod rate;
pub mod rx;
pub mod target;
pub mod vif;
pub mod vif_setting;
mod warnings;

pub use device_disk::DeviceDisk;
pub use device_nic::DeviceNic;
pub use disk::DiskSpec;
pub use disk_limits::DiskLimits;
pub use domain::DomainConfig;
pub use guest::GuestConfig;
pub use host::HostConfig;
pub use vif::VifSpec;
pub use warnings::Warnings;
