//! Block backend: serves virtual block devices to guests.
//!
//! A request comes out of the ring in [`queue`], is checked in [`check`], waits for its turn in [`order`], and is
//! carried out by an [`engine`] in the guest's pages, which `pages` reaches. [`handshake`] agrees with the frontend
//! on where the ring is. [`device`] is the thread that drives these cores for one ring, [`vbd`] the device that the
//! control loop of [`xenstore::driver`] looks at.

pub mod check;
pub mod device;
pub mod engine;
pub mod handshake;
#[cfg(any(test, fuzzing))]
pub mod harness;
mod line;
pub mod order;
mod pages;
pub mod queue;
mod service;
pub mod stats;
pub mod vbd;

pub use device::{DataPath, Tuning};
pub use engine::{Disk, DiskInfo, Engine};
pub use stats::Stats;
pub use vbd::{VbdDriver, open_keys};
