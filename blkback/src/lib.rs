//! Block backend: serves virtual block devices to guests.
//!
//! A request is decoded from the ring by [`queue`] into its slot of a table ([`request`]), and only its number is handed on:
//! checked by [`check`], delayed if need be by [`order`], and carried out by an [`engine`] on the guest's pages, which
//! `guest_data` maps or copies; those of a disk with limits wait before in [`throttle`]. [`handshake`] negotiates the rings with the frontend. `service` is the loop that drives these
//! cores for one ring by batches, in a thread for each queue of the frontend's (`connection`), and `device` what the control loop of [`xenbus::driver`] drives.
//!
//! A backend for all disks of a domain's guests, on any hypervisor:
//!
//! ```no_run
//! use std::os::fd::BorrowedFd;
//! use std::sync::Arc;
//!
//! use blkback::{Tuning, VbdDriver};
//! use event_channel::WaitEventChannels;
//! use grant_table::GrantTable;
//! use xenstore::Client;
//!
//! /// Serves until `stop` becomes readable.
//! fn serve(
//!     grants: Arc<dyn GrantTable>,
//!     channels: Arc<dyn WaitEventChannels>,
//!     store: Client,
//!     stop: BorrowedFd<'_>,
//! ) -> Result<(), Box<dyn std::error::Error>> {
//!     let domid = grants.domid();
//!     let mut driver = VbdDriver::new(grants, channels);
//!     driver.set_tuning(Tuning { batch: 16, ..Tuning::default() });
//!     Ok(xenbus::driver::run(store, domid, &mut driver, stop)?)
//! }
//! ```

pub mod check;
mod commands;
pub mod config;
mod connection;
mod device;
mod device_limits;
mod device_stats;
mod disk_queue;
mod disk_watch;
mod driver;
pub mod engine;
pub mod error;
pub mod error_log;
mod guest_data;
pub mod handshake;
#[cfg(any(test, fuzzing))]
pub mod harness;
mod medium;
pub mod order;
pub mod queue;
mod records;
pub mod request;
mod ring_thread;
mod segment_pages;
mod service;
pub mod shares;
pub mod stats;
pub mod throttle;

pub use config::{DataPath, Tuning};
pub use device_stats::DeviceStats;
pub use driver::{Opener, VbdDriver, open_keys};
pub use engine::{DiscardLimits, Disk, DiskInfo, Engine};
pub use stats::Stats;
